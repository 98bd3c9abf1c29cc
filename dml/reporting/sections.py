"""Sections of a page that compare models: the leaderboard, a suite at each radius, controls."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.reporting.records import Record
from dml.reporting.spelling import (
    CONTROL,
    MARK,
    MISSING,
    control_kind,
    factor_text,
    interval,
    model_text,
    number,
    order,
    settings_text,
    spell,
    table,
    wide_table,
)
from dml.reporting.tables import best_control, comparison, leaderboard, pool, ranked
from dml.reporting.variants import BEST

Pair = tuple[str, str]
"""Loss and defence of a model."""


def marked(r1: float, low: float, high: float, gates: str, bold: bool = False) -> str:
    """Return R@1 with its interval, marked where a gate does not hold."""
    value = f"**{r1:.3f}**" if bold else f"{r1:.3f}"
    return f"{value}{MARK if gates == 'fail' else ''} {interval(low, high)}"


def flagged(r1: float | None, gates: str) -> str:
    """Return R@1 without its interval, marked where a gate does not hold."""
    return number(r1) + (MARK if gates == "fail" and number(r1) != MISSING else "")


def comparison_table(found: pd.DataFrame) -> list[str]:
    """Show :func:`dml.reporting.tables.comparison`, one row per model; adversarial MAP@R where it was attacked."""
    lowered = bool(found["adversarial_map_r"].notna().any())
    rows = [
        [
            MISSING if row.loss == CONTROL else spell(row.loss),
            model_text(row.loss, row.defense) if row.loss == CONTROL else spell(row.defense),
            number(row.natural),
            number(row.map_r),
            marked(row.r1, row.r1_low, row.r1_high, row.gates, bold=True),
            *([number(row.adversarial_map_r)] if lowered else []),
            factor_text(row.factor, row.factor_low, row.factor_high),
        ]
        for row in found.itertuples()
    ]
    map_r = ["adversarial MAP@R"] if lowered else []
    return table(["loss", "defence", "natural R@1", "natural MAP@R", "adversarial R@1", *map_r, "factor"], rows)


def queries_text(found: pd.DataFrame) -> str:
    """Return how many queries and trainings a comparison rests on."""
    queries = range_text(found["queries"], "query", "queries")
    trainings = range_text(found["trainings"], "training", "trainings")
    return queries if found["trainings"].max() == 1 else f"{queries} of {trainings}"


def range_text(found: pd.Series, noun: str = "", plural: str = "") -> str:
    """Return the number that all rows share, or the least and the most, and what they count, if it is given."""
    least, most = int(found.min()), int(found.max())
    span = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    return f"{span} {noun if least == most == 1 else plural}".rstrip()


def suite_section(records: Sequence[Record], figures: Figures) -> list[str]:
    """Show one suite: a comparison at each of the two radii of results/, and one table of all other radii.

    Args:
        records: of one dataset and suite.
        figures: gives the radii and the order of the models.
    """
    lines: list[str] = []
    for eps in dict.fromkeys((figures.eps, figures.paper_eps)):
        found = comparison(records, eps, figures)
        if not found.empty:
            title = f"**Suite `{records[0]['suite']}`, eps {radius_text(eps)}, {queries_text(found)}**"
            lines += ["", title, *comparison_table(found)]
    return lines + radii_section(records, figures)


def models_of(table: pd.DataFrame, figures: Figures) -> list[Pair]:
    """Loss and defence of the models of a table, in the order of every table."""
    places = order(table["defense"], figures)
    pairs = set(zip(table["loss"], table["defense"], strict=True))
    return sorted(pairs, key=lambda pair: (pair[0] == CONTROL, pair[0], places.index(pair[1])))


def radii_section(records: Sequence[Record], figures: Figures) -> list[str]:
    """Show R@1 by l-inf radius, one row per model, if a suite attacked other radii than the two of results/."""
    found = pool(records)
    found = found[found["attack"].eq("worst") & found["norm"].eq("linf")]
    radii = sorted(found["eps"].unique())
    if all(np.isclose(eps, (figures.eps, figures.paper_eps)).any() for eps in radii):
        return []
    rows = []
    for loss, defense in models_of(found, figures):
        own = found[found["loss"].eq(loss) & found["defense"].eq(defense)].set_index("eps")
        gates = "fail" if own["gates"].eq("fail").any() else "hold"
        rows.append(([model_text(loss, defense)], [flagged(own["r1"].get(eps), gates) for eps in radii]))
    text = f"Adversarial R@1 by radius, suite `{records[0]['suite']}`:"
    return ["", text, *wide_table(["model"], [radius_text(eps) for eps in radii], rows)]


def controls_section(records: Sequence[Record], figures: Figures) -> list[str]:
    """Show controls: what attacks leave of each, and what is certified where there is a certificate.

    Args:
        records: of one dataset and suite.
        figures: gives the radii.
    """
    own = [record for record in records if record["loss"] == CONTROL]
    if not own:
        return []
    found, rows = pool(own), []
    radii = [eps for eps in dict.fromkeys((figures.paper_eps, figures.eps)) if np.isclose(found["eps"], eps).any()]
    for _, defense in models_of(found, figures):
        cells = []
        for eps in radii:
            here = found[found["defense"].eq(defense) & found["norm"].eq("linf") & np.isclose(found["eps"], eps)]
            left = here.set_index("attack")["r1"]
            proven = f"{left['certified']:.3f} to " if "certified" in left else ""
            cells.append(f"{proven}{number(left.get('worst'))}")
        natural = pd.DataFrame([record["natural"] for record in own if record["defense"] == defense]).mean()
        rows.append([spell(defense), number(natural["r1"]), number(natural["map_r"]), *cells])
    text = (
        "Controls train no network. Where a control has a certificate, its R@1 is given as a range, from "
        "the certified share of queries to the share that survives all attacks."
    )
    header = ["control", "natural R@1", "natural MAP@R", *(f"R@1 at {radius_text(eps)}" for eps in radii)]
    return ["", text, *table(header, rows)]


def leaderboard_section(records: Sequence[Record], figures: Figures) -> list[str]:
    """Show :func:`dml.reporting.tables.leaderboard` with a line on how to read it.

    Args:
        records: of one dataset.
        figures: names the baseline and the main suite.
    """
    board = leaderboard(records, figures)
    if board.empty:
        return []
    radius = radius_text(figures.eps)
    ours = [record for record in records if record["defense"] == BEST and record["loss"] != CONTROL]
    text = (
        f"R@1 after the worst of all attacks (95% interval over queries), each defence with its best loss at eps "
        f"{radius}; of the controls the best at each radius. The factor is relative to `{figures.baseline}` training "
        f"with the same loss at eps {radius}, and so is the cost, the number of images that the model embedded in "
        "training." + (f" {best_text(ours[0])}" if ours else "")
    )
    return ["", text, *leaderboard_table(board, figures)]


def best_text(record: Record) -> str:
    """Return one sentence: what this project's own defence is on a dataset."""
    given = {name: value for name, value in record["settings"]["defense"].items() if name not in ("name", "defense")}
    kind = record["settings"]["defense"].get("defense", BEST)
    return f"`{BEST}` is `{kind}` with `{settings_text(given)}`."


def leaderboard_table(board: pd.DataFrame, figures: Figures) -> list[str]:
    """Show the leaderboard of one dataset, one row per defence.

    Args:
        board: :func:`dml.reporting.tables.leaderboard`.
        figures: gives the radii.
    """
    lowered = bool(board["adversarial_map_r"].notna().any())
    several = board["trainings"].max() > 1
    rows = [
        [
            spell(row.defense),
            control_kind(row.defense)
            if row.loss == CONTROL
            else spell(row.loss) + (f" ({row.trainings})" if several else ""),
            number(row.natural),
            flagged(row.r1_paper, row.gates),
            marked(row.r1, row.r1_low, row.r1_high, row.gates, bold=True)
            + (f"<br>trainings {row.least:.3f} to {row.most:.3f}" if row.trainings > 1 and row.loss != CONTROL else ""),
            *([number(row.adversarial_map_r)] if lowered else []),
            factor_text(row.factor, row.factor_low, row.factor_high),
            number(row.cost, 1),
        ]
        for row in board.itertuples()
    ]
    paper, eps = (f"R@1 at {radius_text(eps)}" for eps in (figures.paper_eps, figures.eps))
    map_r = [f"MAP@R at {radius_text(figures.eps)}"] if lowered else []
    loss = "loss (trainings)" if several else "loss"
    return table(["defence", loss, "natural R@1", paper, eps, *map_r, "factor", "cost"], rows)


def finding(found: pd.DataFrame, eps: float, figures: Figures) -> str:
    """Return one sentence: R@1 of the best trained model, of its baseline, and of the best control.

    Args:
        found: :func:`dml.reporting.tables.comparison` at this radius.
        eps: the radius.
        figures: names the baseline.
    """
    trained = ranked(found[found["loss"] != CONTROL])
    if trained.empty:
        return ""
    best = trained.iloc[0]
    values = [
        f"{marked(best['r1'], best['r1_low'], best['r1_high'], best['gates'])} for `{best['defense']}`, "
        f"{spell(best['loss'])} loss"
    ]
    base = trained[trained["defense"].eq(figures.baseline) & trained["loss"].eq(best["loss"])]
    if best["defense"] != figures.baseline and not base.empty:
        values.append(f"{flagged(base['r1'].iloc[0], base['gates'].iloc[0])} for `{figures.baseline}`")
    control = best_control(found)
    if control is not None:
        values.append(f"{control['r1']:.3f} for the best control ({spell(control['defense'])})")
    return f"At eps {radius_text(eps)}, R@1 is {'; '.join(values)}."
