"""From records to tables of numbers: metrics.csv, models compared at one radius, the leaderboard."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dml.common.files import atomic
from dml.config.run import Figures
from dml.evaluation.collapse import why_collapsed
from dml.evaluation.statistics import pool_seeds, ratio_interval, wilson
from dml.reporting.records import KEYS, LOWERED, Record
from dml.reporting.spelling import CONTROL, order

COLUMNS = [
    *KEYS,
    "attack",
    "norm",
    "eps",
    "queries",
    "r1",
    "r1_low",
    "r1_high",
    "map_r",
    "gates",
    "collapsed",
]  # of metrics.csv
QUERIES = 200  # the fewest for a curve, a grid or a comparison of single attacks
MODEL = ["loss", "defense"]  # what the trainings of several seeds share


def gates_of(record: Record) -> str:
    """Return ``hold`` or ``fail``, or ``not run``; a collapsed embedding fails, whatever its gates say."""
    return "fail" if collapsed(record) else gates_alone(record)


def gates_alone(record: Record) -> str:
    """Return ``hold`` or ``fail``, or ``not run``."""
    if not record["gates"]:
        return "not run"
    return "hold" if all(gate["passed"] for gate in record["gates"]) else "fail"


def collapsed(record: Record) -> str:
    """Return why the embedding of a trained model counts as collapsed; empty if it does not, or was not measured."""
    measured = record["embedding"] and record["loss"] != CONTROL
    return why_collapsed(record["embedding"]) if measured else ""


def metrics(records: Sequence[Record]) -> pd.DataFrame:
    """Return the rows of metrics.csv: one per dataset, loss, defence, seed, suite, attack, norm and eps."""
    rows = [
        {
            **{key: record[key] for key in KEYS},
            **row,
            "gates": gates_alone(record),
            "collapsed": bool(collapsed(record)),
        }
        for record in records
        for row in record["rows"]
    ]
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"map_r": float})  # none for a certificate
    return table.sort_values([*KEYS, "norm", "eps", "attack"], ignore_index=True)


def write_metrics(table: pd.DataFrame, file: Path) -> None:
    """Write a table with six digits after the point, so that the same outcomes give the same bytes."""
    with atomic(file) as partial:
        table.to_csv(partial, index=False, float_format="%.6f", lineterminator="\n")


def of_suite(records: Sequence[Record], suite: str) -> list[Record]:
    """Return the records of a suite."""
    return [record for record in records if record["suite"] == suite]


def check_alike(records: Sequence[Record]) -> None:
    """Raise ValueError if records must not be compared with each other.

    Compared are models under one suite on one dataset, evaluated by the same settings and code; seeds are pooled only
    where the training differs in nothing else.
    """
    for name, values in (
        ("datasets", {record["dataset"] for record in records}),
        ("suites", {record["suite"] for record in records}),
        ("evaluation digests", {record["digests"]["evaluation"] for record in records}),
    ):
        if len(values) > 1:
            raise ValueError(f"{name} {', '.join(sorted(values))} are mixed; one comparison must be of one of them")
    trained: dict[tuple[str, str], str] = {}
    for record in records:
        model = (record["loss"], record["defense"])
        if trained.setdefault(model, record["digests"]["training"]) != record["digests"]["training"]:
            raise ValueError(f"seeds of {', '.join(model)} were trained differently; they must not be pooled")


def pool(records: Sequence[Record]) -> pd.DataFrame:
    """Return the rows of one dataset and suite with the queries of all seeds counted together; see :func:`gates_of`.

    Raises:
        ValueError: see :func:`check_alike`.
    """
    check_alike(records)
    return _pooled(metrics(records))


def _pooled(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`metrics` with the queries of all seeds counted together."""
    return pool_seeds(rows.assign(gates=rows["gates"].mask(rows["collapsed"], "fail")))


def main_suite(records: Sequence[Record], figures: Figures) -> str | None:
    """Return the suite that a dataset's headline shows: of those that claims rest on, the one that attacked most
    queries, all models together, and ``figures.suite`` among equals; None if there is no such suite.
    """
    sizes: dict[str, int] = {}
    for record in records:
        if record["claims"] and record["rows"]:
            sizes[record["suite"]] = sizes.get(record["suite"], 0) + record["rows"][0]["queries"]
    return max(sorted(sizes), key=lambda name: (sizes[name], name == figures.suite), default=None)


def main_records(by_dataset: Mapping[str, Sequence[Record]], figures: Figures) -> dict[str, Sequence[Record]]:
    """Return the records of each dataset's main suite; datasets without one are left out."""
    suites = {name: main_suite(own, figures) for name, own in by_dataset.items()}
    return {name: of_suite(by_dataset[name], suite) for name, suite in suites.items() if suite}


def comparison(records: Sequence[Record], eps: float, figures: Figures) -> pd.DataFrame:
    """Compare models at one radius of the l-inf ball, each with its fold increase over the baseline of the same loss.

    Of several trainings that differ in the seed alone, natural scores are the mean, and the attacked queries are
    counted together. Untrained controls come last and have no factor.

    Args:
        records: of one dataset and suite.
        eps: the radius.
        figures: names the baseline, and the order of the defences.

    Returns:
        ``loss, defense, trainings, queries, claims, gates, images, natural, natural_low, natural_high, map_r, r1,
        r1_low, r1_high, least, most, adversarial_map_r, factor, factor_low, factor_high``. Natural scores are over
        ``images``; ``least`` and ``most`` are the lowest and the highest R@1 of a training.
        Adversarial MAP@R is what an attack on MAP@R leaves, NaN in a suite without one. The factor is over the seeds
        that a model and the baseline share. That of the baseline and of a control is NaN; where none of the
        baseline's queries survived, it and the upper end of its 95% interval are infinite.

    Raises:
        ValueError: see :func:`check_alike`.
    """
    check_alike(records)
    rows = metrics(records)
    rows = rows[rows["norm"].eq("linf") & np.isclose(rows["eps"], eps) & rows["attack"].isin(["worst", LOWERED])]
    found = _pooled(rows)
    lowered = found.loc[found["attack"].eq(LOWERED), [*MODEL, "map_r"]].rename(columns={"map_r": "adversarial_map_r"})
    found = found[found["attack"].eq("worst")].drop(columns="map_r")
    found = found.merge(lowered, on=MODEL, how="left").merge(_natural(records), on=MODEL)
    runs = dict(list(rows[rows["attack"].eq("worst")].groupby(MODEL)))
    found["least"], found["most"] = (
        [end(runs[row.loss, row.defense]["r1"]) for row in found.itertuples()] for end in (min, max)
    )
    factors = [_factor(runs, row.loss, row.defense, figures.baseline) for row in found.itertuples()]
    found[["factor", "factor_low", "factor_high"]] = np.reshape(factors, (-1, 3)).astype(float)
    places = {name: place for place, name in enumerate(order(found["defense"], figures))}
    found = found.assign(control=found["loss"] == CONTROL, place=found["defense"].map(places))
    columns = [*MODEL, "trainings", "queries", "claims", "gates", "images", "natural", "natural_low", "natural_high"]
    columns += [
        "map_r",
        "r1",
        "r1_low",
        "r1_high",
        "least",
        "most",
        "adversarial_map_r",
        "factor",
        "factor_low",
        "factor_high",
    ]
    return found.sort_values(["control", "loss", "place"], ignore_index=True)[columns]


def _natural(records: Sequence[Record]) -> pd.DataFrame:
    """Natural R@1 with its interval over the images of the test half, and MAP@R: the mean over seeds."""
    rows = [
        {
            **{key: record[key] for key in [*MODEL, "claims"]},
            "natural": record["natural"]["r1"],
            "map_r": record["natural"]["map_r"],
            "images": record["natural"]["queries"],
        }
        for record in records
    ]
    columns = [*MODEL, "claims", "natural", "map_r", "images"]
    table = pd.DataFrame(rows, columns=columns).groupby(MODEL, as_index=False).mean()
    ends = [wilson(round(row.natural * row.images), int(row.images)) for row in table.itertuples()]
    table[["natural_low", "natural_high"]] = np.reshape(ends, (-1, 2)).astype(float)
    return table.assign(claims=table["claims"] > 0, images=table["images"].astype(int))


def _factor(
    runs: Mapping[tuple[str, str], pd.DataFrame], loss: str, defense: str, baseline: str
) -> tuple[float, float, float]:
    """A model's fold increase over the baseline on the seeds of both, and its 95% interval."""
    if defense == baseline or (loss, baseline) not in runs:
        return np.nan, np.nan, np.nan
    own, base = runs[loss, defense], runs[loss, baseline]
    seeds = set(own["seed"]) & set(base["seed"])
    if not seeds:
        return np.nan, np.nan, np.nan
    counts = []
    for side in (own, base):
        shared = side[side["seed"].isin(seeds)]
        counts += [round((shared["r1"] * shared["queries"]).sum()), int(shared["queries"].sum())]
    survive, queries, survive_base, queries_base = counts
    factor = (survive / queries) / (survive_base / queries_base) if survive_base else np.inf
    return factor, *ratio_interval(*counts)


def ranked(found: pd.DataFrame) -> pd.DataFrame:
    """Sort rows of :func:`comparison` by adversarial R@1, equals by natural R@1; best first."""
    return found.sort_values(["r1", "natural"], ascending=False, kind="stable", ignore_index=True)


def best_control(found: pd.DataFrame) -> pd.Series | None:
    """Return the row of :func:`comparison` of the control with the highest adversarial R@1, if any."""
    controls = ranked(found[found["loss"] == CONTROL])
    return None if controls.empty else controls.iloc[0]


def leaderboard(records: Sequence[Record], figures: Figures) -> pd.DataFrame:
    """Rank the defences of one dataset by adversarial R@1 at the headline's radius, each with its best loss.

    Of the controls the best at each of the two radii is kept.

    Returns:
        The columns of :func:`comparison` at ``figures.eps``, ``r1_paper``, adversarial R@1 at ``figures.paper_eps``
        (NaN if that was not attacked), and ``cost``, the images that the training embedded relative to the baseline
        of the same loss (NaN for a control); best first.
    """
    suite = main_suite(records, figures)
    own = of_suite(records, suite) if suite else []
    if not own:
        return pd.DataFrame()
    found = comparison(own, figures.eps, figures)
    other = comparison(own, figures.paper_eps, figures)[[*MODEL, "r1"]]
    found = found.merge(other.rename(columns={"r1": "r1_paper"}), on=MODEL, how="left")
    embedded = {(record["loss"], record["defense"]): float(record["embedded"] or np.nan) for record in own}
    found["cost"] = [
        embedded[loss, defense] / embedded.get((loss, figures.baseline), np.nan)
        for loss, defense in zip(found["loss"], found["defense"], strict=True)
    ]
    found = ranked(found)
    trained = found[found["loss"] != CONTROL].drop_duplicates("defense")
    controls = found[found["loss"] == CONTROL]
    second = controls.sort_values("r1_paper", ascending=False, kind="stable").dropna(subset="r1_paper").head(1)
    kept = [*trained.index, *controls.head(1).index, *second.index]
    return found.loc[sorted(set(kept))].reset_index(drop=True)
