"""Sections of a page on suites of other kinds: one attack at a time, near duplicates, ranking scores, certificates."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dml.attacks.balls import radius_text
from dml.common.table import find
from dml.config.run import Figures
from dml.evaluation.suites import SUITES
from dml.reporting.records import LOWERED, Record, eps_key
from dml.reporting.sections import Pair, models_of, queries_text
from dml.reporting.spelling import (
    MISSING,
    model_text,
    number,
    spell,
    table,
    wide_table,
)
from dml.reporting.tables import MODEL, main_suite, of_suite, pool
from dml.reporting.trust import sort_records


def alone_section(records: Sequence[Record], eps: float, figures: Figures) -> list[str]:
    """Show R@1 after each attack by itself, one row per attack, weak attacks first.

    The last row but two is the main suite on the same queries: suites attack the first queries of one order.

    Args:
        records: of one dataset.
        eps: the radius.
        figures: names the main suite, and gives the order of the models.
    """
    lines: list[str] = []
    for suite in sorted({record["suite"] for record in records if record["alone"]}):
        own = of_suite(records, suite)
        found = alone_table(own, eps)
        if found.empty:
            continue
        models = models_of(found, figures)
        cells = found.pivot_table(index="attack", columns=MODEL, values="r1", sort=False)
        rows = []
        for attack in cells.index:
            label = {"none": "none (natural)", "worst": "all of these"}.get(attack, spell(attack))
            rows.append(([label], [number(cells.loc[attack].get(model)) for model in models]))
        main = main_suite(records, figures)
        if main and main != suite:
            same = [_same_prefix(of_suite(records, main), own, model, eps) for model in models]
            rows.append(([f"suite `{main}`"], [f"**{cell}**" if cell != MISSING else cell for cell in same]))
        low = found[found["attack"] != "worst"].pivot_table(index="attack", columns=MODEL, values="map_r", sort=False)
        rows.append((["MAP@R, natural"], [number(low[model].get("none")) for model in models]))
        rows.append((["MAP@R, lowest after one attack"], [number(low[model].min()) for model in models]))
        queries = queries_text(found)
        lines += [
            "",
            f"R@1 after each attack of suite `{suite}` by itself, eps {radius_text(eps)}, {queries}; *all of these* "
            "also counts what was found at smaller radii:",
            *wide_table(["attack"], [model_text(*model) for model in models], rows),
        ]
    return lines


def alone_table(records: Sequence[Record], eps: float) -> pd.DataFrame:
    """Return pooled rows of attacks that ran by themselves: natural first, weak before strong, worst last.

    Args:
        records: of one dataset and suite.
        eps: the radius.
    """
    found = pool(records)
    found = found[
        found["norm"].eq("linf")
        & found["attack"].ne("certified")
        & (found["attack"].eq("none") | np.isclose(found["eps"], eps))
    ]
    if not found["attack"].eq("worst").any():
        return found.iloc[:0]
    strength = found.groupby("attack")["r1"].mean()
    places = {"none": -2.0, "worst": 2.0}
    rank = found["attack"].map(lambda name: places.get(name, -strength[name]))
    return found.assign(rank=rank).sort_values(["rank", "attack"], kind="stable").drop(columns="rank")


def _same_prefix(main: Sequence[Record], alone: Sequence[Record], model: Pair, eps: float) -> str:
    """R@1 that a suite leaves of the queries that another suite attacked, over their common seeds."""
    key, marks = eps_key(eps), ""
    lengths = {r["seed"]: len(r["survival"].get(key, "")) for r in alone if (r["loss"], r["defense"]) == model}
    for record in main:
        size = lengths.get(record["seed"], 0)
        own = record["survival"].get(key, "")
        if (record["loss"], record["defense"]) == model and len(own) >= size:
            marks += own[:size]
    return f"{marks.count('1') / len(marks):.3f}" if marks else MISSING


def counts_groups(record: Record) -> bool:
    """Whether near duplicates count in a record: items of a query's own group may answer it."""
    kind = record["settings"].get("suite", {}).get("kind")
    return kind in SUITES and find(SUITES, kind, "kind").counts_groups


def groups_section(records: Sequence[Record], figures: Figures) -> list[str]:
    """Show scores where near duplicates count, beside those of the same queries where they are left out.

    Args:
        records: of one dataset.
        figures: gives the two radii and the order of the models.
    """
    rows, radii, anew = [], (0.0, figures.paper_eps, figures.eps), False
    counted = sort_records([record for record in records if counts_groups(record)], figures)
    several, suites = (len({record[key] for record in counted}) > 1 for key in ("seed", "suite"))
    lowered = any("map_r" in record for record in counted)  # by an attack on it
    for record in counted:
        model, size = (record["loss"], record["defense"], record["seed"]), record["rows"][0]["queries"]
        for other in records:
            held = (other["loss"], other["defense"], other["seed"])
            if other["claims"] and other["rows"] and held == model and other["rows"][0]["queries"] == size:
                shown = [*((eps, "r1") for eps in radii), (0.0, "map_r"), (figures.paper_eps, "map_r")][: 4 + lowered]
                cells = [f"{_left(other, *item)} → {_left(record, *item)}" for item in shown]
                seed = f", seed {record['seed']}" * several + f", `{record['suite']}`" * suites
                differ = other.get("weights") != record.get("weights")
                anew |= differ
                rows.append([model_text(*model[:2]) + seed + "*" * differ, f"{size:,}", *cells])
                break
    if not rows:
        return []
    text = (
        "Scores of the same queries where images of a query's group are left out → where they count. Whoever evaluates "
        "without groups measures in part how many queries find their twin: another frame, or the next photograph."
    )
    if anew:
        text += " *: trained again for the second number, with the same recipe and seed, and not to the same weights."
    attacked = [f"R@1 at {radius_text(eps)}" for eps in radii[1:]]
    precision = ["natural MAP@R", f"MAP@R at {radius_text(figures.paper_eps)}"][: 1 + lowered]
    return ["", text, *table(["model", "queries", "natural R@1", *attacked, *precision], rows)]


def _left(record: Record, eps: float, score: str) -> str:
    """A natural score of a record's queries at radius 0, else what its attacks leave."""
    attack = "none" if not eps else LOWERED if score == "map_r" else "worst"
    found = [row[score] for row in record["rows"] if row["attack"] == attack and np.isclose(row["eps"], eps)]
    return number(found[0] if found else None)


ENDS = ("ERS low", "ERS high")  # of the interval of a record's ERS


def ranking_section(records: Sequence[Record], figures: Figures) -> list[str]:
    """Show the field's ten scores and their ERS, one column per model, beside what gives a collapsed embedding away."""
    own = sort_records([record for record in records if "ERS" in record["scores"]], figures)
    if not own:
        return []
    several, suites = len({r["seed"] for r in own}) > 1, len({r["suite"] for r in own}) > 1
    names = [
        model_text(r["loss"], r["defense"])
        + (f", seed {r['seed']}" if several else "")
        + (f", `{r['suite']}`" if suites else "")
        for r in own
    ]
    rows = [(["natural R@1"], [f"{record['natural']['r1']:.3f}" for record in own])]
    for score in (name for name in own[0]["scores"] if name not in ENDS):
        digits, lower = (3 if score in ("TMA", "ES:D") else 1), score in ("CA-", "QA-", "TMA", "ES:D")
        cells = [number(record["scores"].get(score), digits) for record in own]
        rows.append(([f"{score} {'↓' if lower else '↑'}"], cells))
    ends = [" to ".join(f"{record['scores'][name]:.1f}" for name in ENDS) for record in own]
    rows.append((["ERS, 95% interval"], ends))
    for key, label, digits in (("effective_rank", "effective rank", 1), ("inter", "distance of classes", 2)):
        rows.append(([label], [number(record["embedding"].get(key), digits) for record in own]))
    text = (
        "↑: higher is better, ↓: lower is better. ERS rewards an embedding that hardly moves, and so a collapsed one: "
        "the last two rows show its effective rank, and the mean distance between its classes. The interval is over "
        "queries; trainings differ by more. Definitions are those of Zhou and Patel's (2022) public code, but for what "
        "`dml/evaluation/suites/ranking.py` lists."
    )
    return ["", text, *wide_table(["score"], names, rows)]


def certified_section(records: Sequence[Record], figures: Figures) -> list[str]:
    """Show certified R@1 and what attacks leave, by l2 radius, one row per model and kind."""
    lines: list[str] = []
    for suite in sorted({r["suite"] for r in records if any(row["norm"] == "l2" for row in r["rows"])}):
        own = of_suite(records, suite)
        found = pool(own)
        found = found[found["norm"].eq("l2") & found["attack"].ne("none")]
        radii, rows = sorted(found["eps"].unique()), []
        for loss, defense in models_of(found, figures):
            mine = found[found["loss"].eq(loss) & found["defense"].eq(defense)]
            for attack, group in mine.groupby("attack"):
                values = group.set_index("eps")["r1"]
                cells = [number(values.get(eps)) for eps in radii]
                rows.append(([model_text(loss, defense), attack], cells))
        told = {key: sorted({r["scores"][key] for r in own if key in r["scores"]}) for key in ("sigma", "alpha")}
        noise, wrong = (", ".join(f"{value:g}" for value in values) for values in told.values())
        lines += [
            "",
            f"R@1 by l2 radius, suite `{suite}`, {queries_text(found)}. *Certified*: right, and provably so within the "
            "radius, by randomized smoothing of the nearest neighbour. *Smoothed*: what an attack on the smoothed "
            "search leaves. *Base*: what an attack on the search without smoothing leaves. The noise has standard "
            f"deviation {noise}; a certificate is wrong with probability {wrong} at most. A dash: too few noisy copies "
            "were counted to certify so large a radius.",
            *wide_table(["model", "R@1"], [f"{eps:g}" for eps in radii], rows),
        ]
    return lines
