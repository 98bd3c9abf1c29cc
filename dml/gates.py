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
from dml.attacks.pgd import slope
from dml.models import device_of
from dml.randomness import torch_generator
from dml.retrieval import Search
from dml.robustness import Group, Worst, chunk_size_for
from dml.sampling import to_float
from dml.statistics import standard_error

QUERIES = 100  # of the attacked ones, that the gates look at
WHOLE_RANGE = 0.5  # radius at which every picture can be made plain grey: nothing can be left to retrieve by
STEP_SIZES = (0.125, 0.5, 2.0)  # of equal steps, in units of eps
FLAT = 0.05  # share of queries whose gradient may be exactly zero


class Gate(NamedTuple):
    """One check: what was measured, the most it may be, and whether it held."""

    gate: str
    measured: float
    limit: float
    passed: bool


def check(
    search: Search,
    groups: list[Group],
    stronger: list[Group],
    outcomes: pd.DataFrame,
    eps: float,
    *,
    seed: int,
    surrogates: Mapping[str, Search],
    square_tries: int,
    report: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Run all gates on one model at one radius of the l-inf ball.

    Args:
        search: the model and its gallery.
        groups: the attacks of the suite.
        stronger: the same with twice the steps.
        outcomes: what the suite left, see :func:`dml.robustness.attack`.
        eps: the radius to look at, see :func:`telling_radius`.
        seed: of the random starts.
        surrogates: other models on the same images, by name, whose fooling pictures are tried on this one.
        square_tries: of the black-box attack.
        report: receives a line when done.

    Raises:
        ValueError: the suite did not attack at this radius.

    Returns:
        ``gate, measured, limit, passed``, a row a gate. Shares are of the queries looked at; the limit of most is
        the standard error of the R@1 that the suite left.
    """
    rows = _looked_at(outcomes)
    left = _left(outcomes, rows, eps)
    if left.isna().any():
        raise ValueError(f"the suite did not attack at eps {radius_text(eps)}, which the gates are to be run at")
    error = standard_error(int(left.sum()), len(left))
    standing = left.index[left == 1].to_numpy()
    aims = Aims(search.model, search.gallery)

    def fallen(attacks: list[Attack], name: str) -> float:
        """Share of all queries that the suite left standing and these attacks fool."""
        return len(_fooled(search, standing, attacks, eps, seed, name)) / len(rows)

    found = [_zero_radius(search, groups, rows, seed), _falls(outcomes, error)]
    whole = [method for _, methods in groups[:2] for method in methods]
    share = 1 - len(_fooled(search, rows, whole, WHOLE_RANGE, seed, "whole range")) / len(rows)
    found.append(Gate(f"R@1 left at eps {WHOLE_RANGE:g}", share, 0.0, share <= 0))

    def extra(gate: str, attacks: list[Attack]) -> None:
        measured = fallen(attacks, gate)
        found.append(Gate(gate, measured, error, measured <= error))

    extra("fall to twice the steps", [method for _, methods in stronger for method in methods])
    sizes = [by_equal_steps(aims.margin, steps=20, size=size) for size in STEP_SIZES]
    extra("fall to PGD with other step sizes", sizes)
    extra("fall to random noise", [by_noise(aims.margin, draws=10)])
    extra(f"fall to Square, {square_tries} tries", [by_square(aims.margin, tries=square_tries)])
    for name, surrogate in surrogates.items():
        attack = by_apgd(Aims(surrogate.model, surrogate.gallery).margin, steps=20, goal=None)
        extra(f"fall to pictures that fool {name}", [attack])
    found.append(_zero_gradients(search, rows, eps, seed))
    table = pd.DataFrame(found)
    failed = table.loc[~table["passed"], "gate"]
    verdict = "all hold" if failed.empty else "not held: " + "; ".join(failed)
    report(f"{len(table)} gates at eps {radius_text(eps)}, {len(rows)} queries: {verdict}")
    return table


def telling_radius(outcomes: pd.DataFrame) -> float:
    """The largest radius at which the gates can fail: where the suite left more of the queries that they look at
    standing than may fall to them. The smallest radius where there is none.
    """
    rows, radii = _looked_at(outcomes), sorted(outcomes.loc[outcomes["attack"] == "worst", "eps"].unique())
    standing = {eps: int(_left(outcomes, rows, eps).sum()) for eps in radii}
    telling = [eps for eps in radii if standing[eps] / len(rows) > standard_error(standing[eps], len(rows))]
    return float(max(telling, default=radii[0]))


def _looked_at(outcomes: pd.DataFrame) -> np.ndarray:
    """The rows of the attacked queries that the gates look at, evenly spaced among all."""
    rows = np.sort(outcomes["query"].unique())
    return rows[:: max(1, len(rows) // QUERIES)][:QUERIES]


def _left(outcomes: pd.DataFrame, rows: np.ndarray, eps: float) -> pd.Series:
    """Whether the suite left these queries standing at one radius; NaN where it did not attack them at it."""
    at_eps = outcomes[(outcomes["attack"] == "worst") & np.isclose(outcomes["eps"], eps)]
    return at_eps.set_index("query")["r1"].reindex(rows)


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
    return Gate("pictures changed at eps 0", changed, 0.0, changed == 0)


def _falls(outcomes: pd.DataFrame, error: float) -> Gate:
    """A larger ball contains a smaller one: R@1 must not rise with eps."""
    natural = outcomes[outcomes["attack"] == "none"].assign(eps=0.0)
    left = pd.concat([natural, outcomes[outcomes["attack"] == "worst"]]).groupby("eps")["r1"].mean()
    rise = float(max(0.0, left.diff().max())) if len(left) > 1 else 0.0
    return Gate("rise of R@1 with eps", rise, error, rise <= error)


def _zero_gradients(search: Search, rows: np.ndarray, eps: float, seed: int) -> Gate:
    """A gradient that is exactly zero, from a random start, tells a gradient attack nothing."""
    aims, size, gradients = Aims(search.model, search.gallery), chunk_size_for(search), []
    for first in range(0, len(rows), size):
        chunk = rows[first : first + size]
        images = to_float(search.split.images[chunk], device_of(search.model))
        start = Linf(eps).start(images, torch_generator(seed, "gate", "gradients", first))
        gradients.append(slope(aims.margin(start, search.queries(chunk)), start)[1])
    share = float((torch.cat(gradients).flatten(1) == 0).all(1).float().mean())
    return Gate("queries without a gradient", share, FLAT, share <= FLAT)
