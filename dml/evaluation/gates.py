"""Gates: what must hold before a measured robustness is believed (Athalye et al. 2018; Carlini et al. 2019).

An attack that fails says nothing of a model; it may have been a bad attack. Each gate looks for a sign of that. Most
of them run something else on the queries that the suite left standing, and count how many of those fall after all.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from dml.attacks.balls import Linf, radius_text
from dml.attacks.methods import Aims, Attack, by_apgd, by_equal_steps, by_noise, by_square
from dml.attacks.optimisers.pgd import slope
from dml.common.randomness import torch_generator
from dml.data.sampling import evenly, to_float
from dml.evaluation.engine import Group, Worst, chunk_size_for
from dml.evaluation.statistics import standard_error
from dml.models.embedder import device_of
from dml.retrieval.index import Search

QUERIES = 100  # at most, of each kind that the gates look at
WHOLE_RANGE = 0.5  # radius at which every picture can be made plain grey: nothing can be left to retrieve by
STEP_SIZES = (0.125, 0.5, 2.0)  # of equal steps, in units of eps
FLAT = 0.05  # share of queries whose gradient may be exactly zero


class Gate(NamedTuple):
    """One check at a radius: what was measured, the most it may be, and whether it held."""

    gate: str
    eps: float
    measured: float
    limit: float
    passed: bool


def check(
    search: Search,
    groups: list[Group],
    stronger: list[Group],
    outcomes: pd.DataFrame,
    *,
    seed: int,
    surrogates: Mapping[str, Search],
    square_tries: int,
    report: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Run all gates on one model, at every radius of the l-inf ball that a suite attacked.

    What else fells the queries that the suite left standing is tried on a hundred of them, or on all if there are
    fewer; the share that falls, times the R@1 that the suite left, is what that R@1 is too high by.

    Args:
        search: the model and its gallery.
        groups: the attacks of the suite.
        stronger: the same with twice the steps.
        outcomes: what the suite left, see :func:`dml.evaluation.engine.attack`.
        seed: of the random starts.
        surrogates: other models on the same images, by name, whose fooling pictures are tried on this one.
        square_tries: of the black-box attack.
        report: receives a line when done.

    Returns:
        ``gate, eps, measured, limit, passed``, a row a gate and radius. What is measured is a share of all attacked
        queries; the limit of most is the standard error of the R@1 that the suite left.
    """
    attacked = outcomes[outcomes["attack"] == "worst"]
    queries = np.sort(attacked["query"].unique())
    some = queries[evenly(QUERIES, len(queries))]
    whole = [method for _, methods in groups[:2] for method in methods]
    share = 1 - len(_fooled(search, some, whole, WHOLE_RANGE, seed, "whole range")) / len(some)
    found = [
        _zero_radius(search, groups, some, seed),
        *_falls(outcomes),
        Gate(f"R@1 left at eps {WHOLE_RANGE:g}", WHOLE_RANGE, share, 0.0, share <= 0),
    ]
    aims = Aims(search.model, search.gallery)
    more: dict[str, list[Attack]] = {
        "fall to twice the steps": [method for _, methods in stronger for method in methods],
        "fall to PGD with other step sizes": [by_equal_steps(aims.margin, steps=20, size=size) for size in STEP_SIZES],
        "fall to random noise": [by_noise(aims.margin, draws=10)],
        f"fall to Square, {square_tries} tries": [by_square(aims.margin, tries=square_tries)],
    }
    for name, surrogate in surrogates.items():
        attack = by_apgd(Aims(surrogate.model, surrogate.gallery).margin, steps=20, goal=None)
        more[f"fall to pictures that fool {name}"] = [attack]
    for eps, left in attacked.groupby("eps"):
        standing = np.sort(left.loc[left["r1"] == 1, "query"].to_numpy())
        tried = standing[evenly(QUERIES, len(standing))]
        error = standard_error(len(standing), len(left))
        for gate, attacks in more.items():
            fallen = len(_fooled(search, tried, attacks, float(eps), seed, gate)) / max(1, len(tried))
            measured = fallen * len(standing) / len(left)
            found.append(Gate(gate, float(eps), measured, error, measured <= error))
        found.append(_zero_gradients(search, some, float(eps), seed))
    table = pd.DataFrame(found)
    failed = [f"{gate.gate}, eps {radius_text(gate.eps)}" for gate in found if not gate.passed]
    report(f"{len(table)} gates: {'not held: ' + '; '.join(failed) if failed else 'all hold'}")
    return table


def _fooled(search: Search, rows: np.ndarray, attacks: list[Attack], eps: float, seed: int, name: str) -> np.ndarray:
    """The rows that some of the attacks fool."""
    fooled, size = [], chunk_size_for(search)
    for first in range(0, len(rows), size):
        chunk = rows[first : first + size]
        worst = Worst(search, to_float(search.split.images[chunk], device_of(search.model)), search.queries(chunk))
        for number, attack in enumerate(attacks):
            worst.advance(attack, Linf(eps), torch_generator(seed, "gate", name, first, number))
        fooled.append(chunk[(worst.margin >= 0).cpu().numpy()])
    return np.concatenate(fooled) if fooled else rows[:0]


def _zero_radius(search: Search, groups: list[Group], rows: np.ndarray, seed: int) -> Gate:
    """At eps 0 every attack must give back the very same picture."""
    images, queries = to_float(search.split.images[rows[:10]], device_of(search.model)), search.queries(rows[:10])
    changed = 0.0
    for name, methods in groups:
        attacked = methods[0](images, queries, Linf(0.0), torch_generator(seed, "gate", "eps 0", name))
        changed = max(changed, float((attacked != images).flatten(1).any(1).float().mean()))
    return Gate("pictures changed at eps 0", 0.0, changed, 0.0, changed == 0)


def _falls(outcomes: pd.DataFrame) -> list[Gate]:
    """A larger ball contains a smaller one: R@1 must not rise with eps by more than its standard error.

    Nothing where one radius was attacked: the worst pictures include the natural one, above which R@1 cannot rise.
    """
    if outcomes.loc[outcomes["attack"] == "worst", "eps"].nunique() < 2:
        return []
    natural = outcomes[outcomes["attack"] == "none"].assign(eps=0.0)
    left = pd.concat([natural, outcomes[outcomes["attack"] == "worst"]]).groupby("eps")["r1"].agg(["sum", "count"])
    rise = (left["sum"] / left["count"]).diff().iloc[1:]
    eps = rise.idxmax()
    measured, error = max(0.0, float(rise[eps])), standard_error(*left.loc[eps].astype(int))
    return [Gate("rise of R@1 with eps", float(eps), measured, error, measured <= error)]


def _zero_gradients(search: Search, rows: np.ndarray, eps: float, seed: int) -> Gate:
    """A gradient that is exactly zero, from a random start, tells a gradient attack nothing."""
    aims, size, gradients = Aims(search.model, search.gallery), chunk_size_for(search), []
    for first in range(0, len(rows), size):
        chunk = rows[first : first + size]
        images = to_float(search.split.images[chunk], device_of(search.model))
        start = Linf(eps).start(images, torch_generator(seed, "gate", "gradients", first))
        gradients.append(slope(aims.margin(start, search.queries(chunk)), start)[1])
    share = float((torch.cat(gradients).flatten(1) == 0).all(1).float().mean())
    return Gate("queries without a gradient", eps, share, FLAT, share <= FLAT)
