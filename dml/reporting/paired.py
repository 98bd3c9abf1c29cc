"""Two models compared query by query: how far one is ahead in R@1 and MAP@R, and whether that is beyond chance.

All models of a seed meet the same queries, so the outcomes of two models are paired, and what makes a query easy or
hard for both cancels out of their difference: a paired interval is narrower than two separate ones suggest. Each seed
attacks other queries, of which a few are those of another seed. Where both models have several seeds, the
differences of a query are averaged over its seeds first. Intervals and tests are then over queries; like the intervals
of R@1 they leave out how trainings differ.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import ttest_1samp

from dml.data.sampling import attacked_rows
from dml.evaluation.statistics import paired_test, wilson
from dml.reporting.records import Record
from dml.reporting.tables import check_alike

CHANCE = 0.05  # of a difference as large, at most, for a test to separate two models
Model = tuple[str, str]
"""Loss and defence."""
Pairs = list[tuple[Record, Record]]
"""Records of two models with the same seed, and so the same queries."""


class Difference(NamedTuple):
    """How far the first of two models is ahead of the second.

    Attributes:
        queries: how many both met.
        ahead, behind: queries on which the first does better, and worse.
        value: mean difference, first less second.
        low, high: ends of its 95% interval.
        chance: two-sided probability of a difference as large if both were equally good.
        by_counts: whether the test counts queries, as McNemar's does, and does not look at the mean.
    """

    queries: int
    ahead: int
    behind: int
    value: float
    low: float
    high: float
    chance: float
    by_counts: bool

    @property
    def verdict(self) -> str:
        """Whether the first model beats the second: ``holds``, ``fails`` if the second does, or ``not separated``.

        Over several seeds a test that counts queries and the mean may disagree on which model is ahead: then neither
        beats the other.
        """
        if self.chance >= CHANCE or (self.by_counts and (self.ahead > self.behind) != (self.value > 0)):
            return "not separated"
        return "holds" if self.value > 0 else "fails"


def of_shares(differences: np.ndarray) -> Difference:
    """Compare two shares on the same queries.

    The test is McNemar's exact one: of the queries that only one of the models gets right, each is as likely to be the
    first's as the second's. The interval is Wald's with one query added for either model (Bonett and Price 2012,
    "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data"), which Fagerland,
    Lydersen and Laake (2014) recommend; unlike the plain one it has a width where no query tells the models apart.

    Args:
        differences: (N,) of each query: 1 if only the first model gets it right, -1 if only the second does, else 0;
            or the mean of that over seeds. Of such means the test counts the signs, and the interval uses the variance.
    """
    ahead, behind, chance = paired_test(differences > 0, differences < 0)
    padded = np.append(differences, (1.0, -1.0))
    half = 1.959964 * padded.std() / np.sqrt(len(padded))
    low, high = max(-1.0, padded.mean() - half), min(1.0, padded.mean() + half)
    mean = float(differences.mean())
    return Difference(len(differences), ahead, behind, mean, float(low), float(high), chance, by_counts=True)


def of_means(differences: np.ndarray) -> Difference:
    """Compare two means on the same queries by Student's paired t-test and its interval.

    Args:
        differences: (N,) of each query, N at least 2.
    """
    ahead, behind = int((differences > 0).sum()), int((differences < 0).sum())
    if not differences.any():  # without variance there is no t
        return Difference(len(differences), ahead, behind, 0.0, 0.0, 0.0, 1.0, by_counts=False)
    found = ttest_1samp(differences, 0.0)
    low, high = found.confidence_interval(0.95)
    mean = float(differences.mean())
    ends, chance = (float(low), float(high)), float(found.pvalue)
    return Difference(len(differences), ahead, behind, mean, *ends, chance, by_counts=False)


def holm(chances: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, so that one of them is below 0.05 by chance in 5% of cases.

    After Holm (1979), "A simple sequentially rejective multiple test procedure". It needs no independence.
    """
    order = np.argsort(chances, kind="stable")
    steps = np.asarray(chances)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected.tolist()


def same_queries(records: Sequence[Record], first: Model, second: Model, key: str) -> Pairs:
    """Return the records of two models with the same seed and the same queries at a radius, in pairs.

    Args:
        records: of one dataset and suite, of any seeds.
        first, second: loss and defence of the two models.
        key: the radius, see :func:`dml.reporting.records.eps_key`.

    Raises:
        ValueError: records that must not be compared, see :func:`dml.reporting.tables.check_alike`.
    """
    held = [r for r in records if (r["loss"], r["defense"]) in (first, second) and key in r["survival"]]
    check_alike(held)
    found = {(r["loss"], r["defense"], r["seed"]): r for r in held}
    seeds = sorted({record["seed"] for record in held})
    pairs = [(found.get((*first, seed)), found.get((*second, seed))) for seed in seeds]
    return [(a, b) for a, b in pairs if a and b and len(a["survival"][key]) == len(b["survival"][key])]


def shares(pairs: Pairs, key: str) -> list[tuple[float, float, float]]:
    """Return the share of queries that survive under each of two models, with its 95% interval (Wilson's).

    Args:
        pairs: see :func:`same_queries`; all seeds that both models have count.
        key: the radius.
    """
    joined = ["".join(record["survival"][key] for record in side) for side in zip(*pairs, strict=True)]
    return [(marks.count("1") / len(marks), *wilson(marks.count("1"), len(marks))) for marks in joined]


def in_r1(pairs: Pairs, key: str) -> Difference | None:
    """Compare two models in the share of queries that survive.

    Args:
        pairs: see :func:`same_queries`.
        key: the radius.

    Returns:
        None if there are no pairs.
    """
    differences = _differences(pairs, lambda record: [int(mark) for mark in record["survival"][key]])
    return of_shares(differences) if len(differences) else None


def in_map_r(pairs: Pairs, key: str) -> Difference | None:
    """Compare two models in adversarial MAP@R.

    Args:
        pairs: see :func:`same_queries`.
        key: the radius.

    Returns:
        None if there are no pairs of two queries or more, or a record lacks the MAP@R of each query.
    """
    if not all(key in record.get("map_r", {}) for pair in pairs for record in pair):
        return None
    differences = _differences(pairs, lambda record: [float(value) for value in record["map_r"][key].split()])
    return of_means(differences) if len(differences) > 1 else None


def _differences(pairs: Pairs, values: Callable[[Record], Sequence[float]]) -> np.ndarray:
    """First less second model on each query, the mean over its seeds."""
    queries, found = [], []
    for first, second in pairs:
        found.append(np.subtract(values(first), values(second)))
        queries.append(attacked_rows(len(found[-1]), first["natural"]["queries"], first["seed"]))
    if not found:
        return np.array([])
    _, which, times = np.unique(np.concatenate(queries), return_inverse=True, return_counts=True)
    return np.bincount(which, np.concatenate(found)) / times
