"""Two models compared query by query: how far one is ahead in R@1 and MAP@R, and whether that is beyond chance.

All models of a seed meet the same queries, so the outcomes of two models are paired, and what makes a query easy or
hard for both cancels out of their difference: a paired interval is narrower than two separate ones suggest. Each seed
attacks queries of its own, of which a few are those of another seed. Where both models have several seeds, the
differences of a query are averaged over its seeds first. Intervals and tests are then over queries; like the intervals
of R@1 they leave out how trainings differ.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import ttest_1samp

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.data.sampling import attacked_rows
from dml.evaluation.statistics import paired_test
from dml.reporting.records import Record, eps_key
from dml.reporting.spelling import CONTROL, MARK, MISSING, chance_text, details, interval, model_text, table
from dml.reporting.tables import check_alike, comparison

CHANCE = 0.05  # of a difference as large, at most, for a test to separate two models
OPEN = 12  # rows, at most, of a table that is not folded
NAMED = 6  # models, at most, that a sentence lists
METHODS = (
    "How far it is ahead of each other model on the queries that both met, with a paired 95% interval over queries "
    "(R@1: Bonett and Price 2012; MAP@R: Student's t), and the probability p of a difference as large if both were "
    "equally good (R@1: McNemar's exact test; MAP@R: paired t-test). Only p is corrected for the number of rows (Holm "
    "1979). A query that several seeds attacked counts once, with the mean over them. Neither interval nor p accounts "
    "for how trainings differ, or for the choice of the best model by these same queries."
)
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
    """

    queries: int
    ahead: int
    behind: int
    value: float
    low: float
    high: float
    chance: float

    @property
    def verdict(self) -> str:
        """Whether the first model beats the second: ``holds``, ``fails`` if the second does, or ``not separated``."""
        if self.chance >= CHANCE:
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
    return Difference(len(differences), ahead, behind, float(differences.mean()), float(low), float(high), chance)


def of_means(differences: np.ndarray) -> Difference:
    """Compare two means on the same queries by Student's paired t-test and its interval.

    Args:
        differences: (N,) of each query, N at least 2.
    """
    ahead, behind = int((differences > 0).sum()), int((differences < 0).sum())
    if not differences.any():  # without variance there is no t
        return Difference(len(differences), ahead, behind, 0.0, 0.0, 0.0, 1.0)
    found = ttest_1samp(differences, 0.0)
    low, high = found.confidence_interval(0.95)
    mean = float(differences.mean())
    return Difference(len(differences), ahead, behind, mean, float(low), float(high), float(found.pvalue))


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
    found: dict[int, list[float]] = {}
    for first, second in pairs:
        differences = np.subtract(values(first), values(second))
        queries = attacked_rows(len(differences), first["natural"]["queries"], first["seed"])
        for query, difference in zip(queries, differences, strict=True):
            found.setdefault(int(query), []).append(float(difference))
    return np.array([np.mean(several) for several in found.values()])


def best_section(records: Sequence[Record], figures: Figures) -> list[str]:
    """Compare the trained model with the highest adversarial R@1 with every other model and control, query by query.

    Args:
        records: of one dataset and suite.
        figures: gives the radius.
    """
    found, key = comparison(records, figures.eps, figures), eps_key(figures.eps)
    trained = found[found["loss"] != CONTROL]
    if trained.empty:
        return []
    best = trained.loc[trained["r1"].idxmax()]
    others = found.drop(index=best.name).sort_values("r1", ascending=False, kind="stable")
    pairs = {
        _name(row): same_queries(records, (best["loss"], best["defense"]), (row["loss"], row["defense"]), key)
        for _, row in others.iterrows()
    }
    recall = _corrected({name: in_r1(both, key) for name, both in pairs.items()})
    precision = _corrected({name: in_map_r(both, key) for name, both in pairs.items()})
    if not recall:
        return []
    rows = [
        [name, f"{found.queries:,}", *_cells(found), *(_cells(precision.get(name)) if precision else [])]
        for name, found in recall.items()
    ]
    columns = ["against", "queries", "R@1 ahead by", "p", *(["MAP@R ahead by", "p"] if precision else [])]
    shown = table(columns, rows)
    if len(rows) > OPEN:
        shown = details(f"All {len(rows)} comparisons", shown)
    standing = _standing("R@1", recall) + (f", and {_standing('MAP@R', precision)}" if precision else "")
    text = f"At eps {radius_text(figures.eps)}, **{_name(best)}** is {standing}."
    return ["", "## The best model against the others, query by query", "", text, "", METHODS, *shown]


def _name(row: pd.Series) -> str:
    return model_text(row["loss"], row["defense"]) + (MARK if row["gates"] == "fail" else "")


def _corrected(found: Mapping[str, Difference | None]) -> dict[str, Difference]:
    """The differences that there are, their p-values corrected for their number."""
    known = {name: difference for name, difference in found.items() if difference}
    chances = holm([difference.chance for difference in known.values()])
    return {
        name: difference._replace(chance=chance)
        for (name, difference), chance in zip(known.items(), chances, strict=True)
    }


def _cells(found: Difference | None) -> list[str]:
    if found is None:
        return [MISSING, MISSING]
    return [f"{found.value:+.3f} {interval(found.low, found.high)}", chance_text(found.chance)]


def _standing(score: str, compared: Mapping[str, Difference]) -> str:
    """Which of the others a model is ahead of."""
    short = [name for name, found in compared.items() if found.verdict != "holds"]
    if not short:
        largest = chance_text(max(found.chance for found in compared.values()))
        whom = f"all {len(compared)} others" if len(compared) > 1 else "the other model"
        return f"ahead of {whom} in {score} beyond chance (largest corrected p {largest})"
    if len(short) == len(compared):
        return f"not ahead of any other in {score} beyond chance"
    named = f" (not of {'; '.join(short)})" if len(short) <= NAMED else ""
    return f"ahead of {len(compared) - len(short)} of {len(compared)} others in {score} beyond chance{named}"
