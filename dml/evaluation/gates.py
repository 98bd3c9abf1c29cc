"""Gates: what must hold before a measured robustness is believed (Athalye et al. 2018; Carlini et al. 2019).

A failed attack says nothing about a model; it may have been a bad attack. Each gate looks for a sign of that. Most of
them run something else on the queries that survive the suite, and count how many of them break.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from dml.attacks.balls import Linf, radius_text
from dml.attacks.base import Run
from dml.attacks.objectives.margin import margin_objective
from dml.attacks.optimisers.apgd import apgd
from dml.attacks.optimisers.pgd import value_and_gradient
from dml.attacks.queries.margin_pgd import MarginPGD
from dml.attacks.queries.noise import Noise
from dml.attacks.queries.square import Square
from dml.common.files import read_kept, write_columns
from dml.common.processes import shared_out
from dml.common.randomness import torch_generator
from dml.data.sampling import evenly
from dml.evaluation.engine import Group, Worst, chunk_size_for
from dml.evaluation.statistics import standard_error
from dml.evaluation.suites.base import Suite
from dml.retrieval.index import Search

QUERIES = 100  # at most, that gates without a search look at
NEAREST = 30  # other attacks are tried on at least this many survivors: those nearest to breaking, which break first
BEYOND = 1.5  # and on at least this many times the number that may break, or the gate could not fail
WHOLE_RANGE = 0.5  # radius at which every image can be made plain grey, so that no query may survive
STEP_SIZES = (0.125, 0.5, 2.0)  # of equal steps, in units of eps
STEPS = 20  # of the gates' own attacks
FLAT = 0.05  # share of queries whose gradient may be exactly zero


class Gate(NamedTuple):
    """One check at a radius.

    Attributes:
        gate: its name.
        eps: the radius.
        measured: a share of the attacked queries, or of those looked at; 1 minus a cosine where gradients are compared.
        limit: the most it may be.
        passed: whether it holds.
    """

    gate: str
    eps: float
    measured: float
    limit: float
    passed: bool


class Other(NamedTuple):
    """Other attacks that must not break what survives a suite.

    Attributes:
        gate: its name.
        words: of the random generators; other words would draw other starts and change published figures.
        runs: tried in turn.
    """

    gate: str
    words: str
    runs: list[Run]


def check(
    search: Search,
    suite: Suite,
    outcomes: pd.DataFrame,
    *,
    seed: int,
    surrogates: Mapping[str, Search],
    folder: Path | None = None,
    report: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Run all gates on one model, at every radius of the l-inf ball that a suite attacked.

    Processes that work together (:mod:`dml.common.processes`) take turns, gate by gate.

    Other attacks are tried on the surviving queries whose margin is nearest to breaking: on thirty, on more where a
    suite is so large that a gate allows over twenty to break, or on all if there are fewer. Those that break, as a
    share of the attacked queries, are what the suite's R@1 is at least too high by.

    Args:
        search: the model and its gallery.
        suite: a list of attacks; its doubled form is one of the other attacks.
        outcomes: what the suite found, see :func:`dml.evaluation.engine.attack`.
        seed: of the random starts.
        surrogates: other models of the same images, by name, whose adversarial images are tried on this one.
        folder: keeps the gates that are finished, so that a killed check continues; None keeps nothing.
        report: receives one line per gate, and one at the end.

    Returns:
        ``gate, eps, measured, limit, passed``, one row per gate and radius. Most limits are the standard error of the
        suite's R@1.
    """
    groups, attacked = suite.runs(search), outcomes[outcomes["attack"] == "worst"]
    queries = np.sort(attacked["query"].unique())
    some = queries[evenly(QUERIES, len(queries))]

    kept = partial(partial, _kept, folder, report)
    work = [
        kept("eps 0", 0.0, _zero_radius, search, groups, some, seed),
        kept("whole range", WHOLE_RANGE, _whole_range, search, groups[:2], some, seed),
    ]
    others, radii = _others(search, suite, surrogates), list(attacked.groupby("eps"))
    for (radius, left), larger in zip_longest(radii, radii[1:]):
        eps, survivors = float(radius), left[left["r1"] == 1]
        error = standard_error(len(survivors), len(left))
        tried = nearest(survivors, error * len(left))
        if larger is not None and not suite.alone:
            work.append(kept("left out", eps, _left_out, search, groups, eps, larger[1], error, seed))
        for other in others:
            work.append(kept(other.gate, eps, _broken_by, search, other, eps, tried, len(left), error, seed))
        work.append(kept("gradients", eps, _zero_gradients, search, some, eps, seed))
        work.append(partial(_from_outcomes, outcomes, eps, error))
    found = [gate for gates in shared_out(work, lambda measure: measure()) for gate in gates]
    table = pd.DataFrame(found)
    failed = [f"{gate.gate}, eps {radius_text(gate.eps)}" for gate in found if not gate.passed]
    report(f"{len(table)} gates: {'failed: ' + '; '.join(failed) if failed else 'all hold'}")
    return table


def nearest(survivors: pd.DataFrame, allowed: float) -> np.ndarray:
    """Return the numbers (N,) of the surviving queries that are nearest to breaking, in order.

    Args:
        survivors: outcomes with ``query`` and ``margin``.
        allowed: how many of them may break before a gate fails; need not be whole.
    """
    count = max(NEAREST, math.ceil(BEYOND * allowed))
    return np.sort(survivors.nlargest(count, "margin")["query"].to_numpy())


def _kept(
    folder: Path | None,
    report: Callable[[str], None],
    gate: str,
    eps: float,
    measure: Callable[..., Gate],
    *arguments: Any,
) -> list[Gate]:
    """The gate that an earlier, killed check measured, or else a fresh one; reported as one line."""
    name = re.sub(r"\W+", "_", f"{gate} {eps:.6f}")
    file = folder / f"{name}.npz" if folder else None  # which carries a checksum
    table = read_kept(file) if file else None
    if table is not None:
        found = Gate(**table.to_dict("records")[0])
    else:
        found = measure(*arguments)
        if file is not None:
            write_columns(file, pd.DataFrame([found]))
    report(f"{found.gate}, eps {radius_text(found.eps)}: {found.measured:.3f} of at most {found.limit:.3f}")
    return [found]


def _others(search: Search, suite: Suite, surrogates: Mapping[str, Search]) -> list[Other]:
    """Attacks beside those of the suite."""
    stronger = suite.doubled()
    sizes = [run for size in STEP_SIZES for run in MarginPGD(STEPS, size).runs(search)]
    tries = suite.gate_tries
    found = [
        Other("broken by PGD with other step sizes", "fall to PGD with other step sizes", sizes),
        Other("broken by random noise", "fall to random noise", Noise(10).runs(search)),
        Other(f"broken by Square, {tries} tries", f"fall to Square, {tries} tries", Square(tries).runs(search)),
    ]
    if stronger is not None:
        runs = [run for group in stronger.runs(search) if group.lowers == "r1" for run in group.runs]
        found.insert(0, Other("broken by twice the steps", "fall to twice the steps", runs))
    for name, surrogate in surrogates.items():
        gate, words = f"broken by images that fool {name}", f"fall to pictures that fool {name}"
        found.append(Other(gate, words, [_transfer(surrogate)]))
    return found


def _transfer(surrogate: Search) -> Run:
    """Auto-PGD on the margin of another model."""
    return lambda images, queries, ball, generator: apgd(
        images,
        margin_objective(surrogate.model, queries, surrogate.gallery),
        ball,
        steps=STEPS,
        generator=generator,
    )


def _broken_by(
    search: Search, other: Other, eps: float, tried: np.ndarray, attacked: int, limit: float, seed: int
) -> Gate:
    """The share of all attacked queries that survive the suite and are seen to break under something else."""
    measured = _broken(search, tried, other.runs, eps, seed, other.words) / attacked
    return Gate(other.gate, eps, measured, limit, measured <= limit)


def _broken(search: Search, rows: np.ndarray, runs: Sequence[Run], eps: float, seed: int, words: str) -> int:
    """How many of some queries break under some runs."""
    broken = 0
    for first, chunk in _chunks(search, rows):
        worst = Worst(search, search.images(chunk), search.queries(chunk))
        for number, run in enumerate(runs):
            worst.advance(run, Linf(eps), torch_generator(seed, "gate", words, first, number))
        broken += int((~worst.survives).sum())
    return broken


def _chunks(search: Search, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    size = chunk_size_for(search)
    return ((first, rows[first : first + size]) for first in range(0, len(rows), size))


def _whole_range(search: Search, groups: list[Group], rows: np.ndarray, seed: int) -> Gate:
    """R@1 that the suite's first attacks leave where every image can be made plain grey."""
    runs = [run for group in groups for run in group.runs]
    share = 1 - _broken(search, rows, runs, WHOLE_RANGE, seed, "whole range") / len(rows)
    return Gate(f"R@1 left at eps {WHOLE_RANGE:g}", WHOLE_RANGE, share, 0.0, share <= 0)


def _zero_radius(search: Search, groups: list[Group], rows: np.ndarray, seed: int) -> Gate:
    """At eps 0 every attack must return the very same image."""
    images, queries = search.images(rows[:10]), search.queries(rows[:10])
    changed = 0.0
    for group in groups:
        attacked = group.runs[0](images, queries, Linf(0.0), torch_generator(seed, "gate", "eps 0", group.name))
        changed = max(changed, float((attacked != images).flatten(1).any(1).float().mean()))
    return Gate("images changed at eps 0", 0.0, changed, 0.0, changed == 0)


def _left_out(search: Search, groups: list[Group], eps: float, larger: pd.DataFrame, error: float, seed: int) -> Gate:
    """What survived a larger radius is not attacked at a smaller one: some of it is attacked there after all."""
    runs = [run for group in groups if group.lowers == "r1" for run in group.runs]
    tried = nearest(larger[larger["r1"] == 1], error * len(larger))
    measured = _broken(search, tried, runs, eps, seed, "left out") / len(larger)
    return Gate("left out at this radius, but broken", eps, measured, error, measured <= error)


def _zero_gradients(search: Search, rows: np.ndarray, eps: float, seed: int) -> Gate:
    """A gradient that is exactly zero at a random start tells a gradient attack nothing."""
    gradients = []
    for first, chunk in _chunks(search, rows):
        start = Linf(eps).start(search.images(chunk), torch_generator(seed, "gate", "gradients", first))
        objective = margin_objective(search.model, search.queries(chunk), search.gallery)
        gradients.append(value_and_gradient(objective, start)[1])
    share = float((torch.cat(gradients).flatten(1) == 0).all(1).float().mean())
    return Gate("queries without a gradient", eps, share, FLAT, share <= FLAT)


def _from_outcomes(outcomes: pd.DataFrame, eps: float, error: float) -> list[Gate]:
    """Gates that need no further attack: numerical precision, and certificates where the model gives any."""
    worst = outcomes[(outcomes["attack"] == "worst") & (outcomes["eps"] == eps)].set_index("query")
    natural = outcomes[outcomes["attack"] == "none"].set_index("query")
    share = float((worst["disagree"].eq(1) | natural["disagree"].eq(1).reindex(worst.index)).mean())
    found = [Gate("float32 and exact ranking disagree", eps, share, error, share <= error)]
    certified = outcomes[(outcomes["attack"] == "certified") & (outcomes["eps"] == eps)].set_index("query")["r1"]
    if len(certified):
        broken = float((certified.eq(1) & worst["r1"].reindex(certified.index).eq(0)).mean())
        found.append(Gate("certified queries that the attack broke", eps, broken, 0.0, broken == 0))
    return found
