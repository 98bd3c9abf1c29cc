"""Weak attacks and strong ones, one by one on the same queries: what a claim of robustness is worth under each."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from dml.attacks.balls import Linf
from dml.attacks.methods import (
    FOOLED,
    Aims,
    Attack,
    by_apgd,
    by_fgsm,
    by_nes,
    by_noise,
    by_pgd,
    by_square,
)
from dml.attacks.objectives.queries import FOOLS
from dml.attacks.peer import INSTALLED, by_peer_apgd
from dml.common.randomness import torch_generator
from dml.data.sampling import to_float
from dml.evaluation.engine import Group, Worst, attack, chunk_size_for, summarise
from dml.evaluation.statistics import wilson
from dml.models.embedder import device_of
from dml.retrieval.index import Search


def groups(search: Search, steps: int) -> list[Group]:
    """One attack a group, from those that see or aim at little to those that aim at what retrieval answers.

    Every attack by gradients takes as many steps, but for the targeted ones, which take them towards each class.
    """
    aims = Aims(search.model, search.gallery)
    found: list[Group] = [
        ("random noise", [by_noise(aims.margin, draws=10)]),
        ("NES on ranks, 5 steps", [by_nes(aims.ranks, steps=5)]),
        ("Square, 100 tries", [by_square(aims.margin, tries=100)]),
        ("FGSM on margin", [by_fgsm(aims.margin)]),
        ("PGD on embedding shift", [by_pgd(aims.embedding_shift, steps=steps)]),
        ("PGD on metric loss", [by_pgd(aims.metric_loss, steps=steps)]),
        ("PGD on margin", [by_pgd(aims.margin, steps=steps)]),
        ("APGD on MAP@R", [by_apgd(aims.map, steps=steps)]),
        ("APGD on cross-entropy", [by_apgd(aims.cross_entropy, steps=steps, goal=FOOLS)]),
        *_strongest(search, steps),
    ]
    ratio = len(search.gallery.labels.unique()) > 2  # which the difference of logits ratio needs
    if ratio:
        found.insert(-2, ("APGD on DLR", [by_apgd(aims.dlr, steps=steps, goal=FOOLED)]))
    if INSTALLED:  # the peer's table rows are there wherever `make` made the environment
        for loss in ("ce", "dlr") if ratio else ("ce",):
            peer = by_peer_apgd(search.model, search.gallery, steps=steps, loss=loss)
            found.insert(-2, (f"adversarial-library APGD on {loss.upper()}", [peer]))
    return found


def _strongest(search: Search, steps: int) -> list[Group]:
    aims = Aims(search.model, search.gallery)
    targets = range(min(5, len(search.gallery.labels.unique()) - 1))
    return [
        ("APGD on margin", [by_apgd(aims.margin, steps=steps, goal=FOOLED)]),
        ("APGD on 5 targets", [by_apgd(aims.targeted(rank), steps=steps, goal=FOOLED) for rank in targets]),
    ]


def compare(search: Search, rows: np.ndarray, eps: float, *, steps: int, seed: int) -> pd.DataFrame:
    """R@1 left by each attack by itself on the queries of some rows.

    Returns:
        ``attack, eps, queries, r1, r1_low, r1_high``, weak attacks first; ``worst`` is all of them.
    """
    named = groups(search, steps)
    outcomes = attack(search, rows, named, [Linf(eps)], seed=seed, alone=True, report=lambda line: None)
    table = summarise(outcomes).set_index("attack")
    return table.loc[["none", *(name for name, _ in named), "worst"]].reset_index().drop(columns=["norm", "map_r"])


def map_left(search: Search, rows: np.ndarray, eps: float, *, steps: int, seed: int) -> tuple[float, float]:
    """MAP@R of the queries of some rows, natural and left by Auto-PGD that aims at it."""
    aims, size = Aims(search.model, search.gallery), chunk_size_for(search)
    natural, left = [], []
    for first in range(0, len(rows), size):
        chunk = rows[first : first + size]
        images, queries = to_float(search.split.images[chunk], device_of(search.model)), search.queries(chunk)
        aim = aims.map(images, queries)
        with torch.no_grad():
            natural.append(-aim(images))
        found = by_apgd(lambda images, queries, aim=aim: aim, steps=steps)(
            images, queries, Linf(eps), torch_generator(seed, "map", first)
        )
        with torch.no_grad():
            left.append(torch.minimum(natural[-1], -aim(found)))
    return float(torch.cat(natural).mean()), float(torch.cat(left).mean())


def by_steps(search: Search, rows: np.ndarray, eps: float, steps: Sequence[int], *, seed: int) -> pd.DataFrame:
    """R@1 left by Auto-PGD on the margin with more and more steps, each from the start.

    Returns:
        ``steps, r1, r1_low, r1_high``.
    """
    aims = Aims(search.model, search.gallery)
    left = [_left(search, rows, [by_apgd(aims.margin, steps=count, goal=FOOLED)], eps, seed, count) for count in steps]
    return _curve("steps", steps, left, len(rows))


def by_eps(search: Search, rows: np.ndarray, radii: Sequence[float], *, steps: int, seed: int) -> pd.DataFrame:
    """R@1 left in larger and larger l-inf balls by the two strongest attacks of :func:`groups` in turn: Auto-PGD on the
    margin, then towards each of 5 classes, ``steps`` each.

    Returns:
        ``eps, r1, r1_low, r1_high``.
    """
    attacks = [method for _, methods in _strongest(search, steps) for method in methods]
    left = [_left(search, rows, attacks, eps, seed, eps) for eps in radii]
    return _curve("eps", radii, left, len(rows))


def _left(search: Search, rows: np.ndarray, attacks: list[Attack], eps: float, seed: int, point: float) -> int:
    """How many queries stand after some attacks; ``point`` makes the random starts of a curve's points differ."""
    left, size = 0, chunk_size_for(search)
    for first in range(0, len(rows), size):
        chunk = rows[first : first + size]
        worst = Worst(search, to_float(search.split.images[chunk], device_of(search.model)), search.queries(chunk))
        for number, method in enumerate(attacks):
            worst.advance(method, Linf(eps), torch_generator(seed, "curve", point, first, number))
        left += int(torch.count_nonzero(worst.margin < 0))
    return left


def _curve(name: str, points: Sequence[float], left: list[int], total: int) -> pd.DataFrame:
    found = [(point, count / total, *wilson(count, total)) for point, count in zip(points, left, strict=True)]
    return pd.DataFrame(found, columns=[name, "r1", "r1_low", "r1_high"])
