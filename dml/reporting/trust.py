"""Sections of a page that say how far its numbers can be trusted: gates, effort, paired tests, seeds, embeddings."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.evaluation.collapse import LEAST_DISTANCE, LEAST_RANK
from dml.evaluation.gates import NEAREST, QUERIES
from dml.evaluation.statistics import over_seeds, wilson
from dml.reporting.paired import in_r1, same_queries
from dml.reporting.records import Record, eps_key
from dml.reporting.spelling import (
    CONTROL,
    MARK,
    MISSING,
    chance_text,
    interval,
    model_text,
    number,
    order,
    spell,
    table,
    wide_table,
)
from dml.reporting.tables import check_alike, collapsed, comparison, gates_of, of_suite, ranked

COLLAPSE = ("model", "effective rank", "share of first direction", "within classes", "between", "ratio")


def suites_of(records: Sequence[Record]) -> list[str]:
    """Return the suites of some records by name."""
    return sorted({record["suite"] for record in records})


def sort_records(records: Sequence[Record], figures: Figures) -> list[Record]:
    """Return records by loss, seed and defence, controls last."""
    places = order((record["defense"] for record in records), figures)

    def place(record: Record) -> tuple[bool, str, int, int]:
        return record["loss"] == CONTROL, record["loss"], record["seed"], places.index(record["defense"])

    return sorted(records, key=place)


def gates_section(records: Sequence[Record], figures: Figures) -> list[str]:
    """Show what every gate measured, one column per model.

    Args:
        records: of one dataset and suite.
        figures: gives the order of the models.
    """
    own = sort_records([record for record in records if record["gates"]], figures)
    if not own:
        return []
    names = list(dict.fromkeys(_general(gate["gate"]) for record in own for gate in record["gates"]))
    radii = sorted({row["eps"] for record in own for row in record["rows"] if row["attack"] == "worst"})
    rows = []
    for eps in radii:
        cells = [_surviving(record, eps) for record in own]
        rows.append((["queries that survive", radius_text(eps)], cells))
    for name in names:
        here = [[gate for gate in record["gates"] if _general(gate["gate"]) == name] for record in own]
        for eps in sorted({gate["eps"] for gates in here for gate in gates}):
            cells = ["; ".join(_gate(gate) for gate in gates if gate["eps"] == eps) for gates in here]
            rows.append(([name, radius_text(eps) if eps else "0"], [cell or MISSING for cell in cells]))
    failed = [_label(record, own) for record in own if not all(gate["passed"] for gate in record["gates"])]
    text = f"Not every gate holds for {'; '.join(failed)}." if failed else "All gates hold."
    if fell := [_label(record, own) for record in own if collapsed(record)]:
        text += f" Collapsed, see below: {'; '.join(fell)}."
    return [
        "",
        f"{text} A cell shows what was measured and, in brackets, the most that it may be; bold figures do not hold. "
        "Shares are of all attacked queries; at eps 0 and 0.5, and where gradients are counted, of the up to "
        f"{QUERIES} that a gate looks at. Other attacks are tried on the {NEAREST} survivors nearest to breaking, "
        "where a stronger one would show first; on more where a gate allows over twenty to break.",
        *wide_table(["gate", "eps"], [_label(record, own) for record in own], rows),
    ]


def _surviving(record: Record, eps: float) -> str:
    marks = record["survival"].get(eps_key(eps), "")
    return f"{marks.count('1'):,} of {len(marks):,}" if marks else MISSING


def _general(gate: str) -> str:
    """Gates on other models' images share a row, whichever models they were."""
    return re.sub(r"that fool .+", "that fool another model", gate)


def _gate(gate: Mapping[str, Any]) -> str:
    value = f"{gate['measured']:.3f}" if gate["passed"] else f"**{gate['measured']:.3f}**"
    return f"{value} ({gate['limit']:.3f})"


def _label(record: Record, records: Sequence[Record]) -> str:
    several = len({other["seed"] for other in records}) > 1
    name = model_text(record["loss"], record["defense"]) + (f", seed {record['seed']}" if several else "")
    return name + (MARK if gates_of(record) == "fail" else "")


def effort_section(records: Sequence[Record], eps: float, figures: Figures) -> list[str]:
    """Compare suites of different effort on the queries that all of them attacked, one row per model.

    Suites attack the first queries of one order, so each model's suites are compared on the shortest of them, over the
    seeds that all of them attacked with the same weights. Only suites that claims rest on are compared.

    Args:
        records: of one dataset.
        eps: the radius.
        figures: gives the order of the models.
    """
    key = eps_key(eps)
    held = [record for record in records if record["claims"] and key in record["survival"]]
    suites, rows = suites_of(held), []
    models = dict.fromkeys((record["loss"], record["defense"]) for record in sort_records(held, figures))
    for loss, defense in models:
        own = [record for record in held if (record["loss"], record["defense"]) == (loss, defense)]
        for suite in suites_of(own):
            check_alike(of_suite(own, suite))
        ran = {suite: {r["seed"]: r["survival"][key] for r in of_suite(own, suite)} for suite in suites_of(own)}
        weights = {seed: {r.get("weights") for r in own if r["seed"] == seed} for seed in {r["seed"] for r in own}}
        shared = set.intersection(*(set(marks) for marks in ran.values()))
        seeds = sorted(seed for seed in shared if len(weights[seed]) == 1)
        if len(ran) < 2 or not seeds:
            continue
        size = min(len(marks[seed]) for marks in ran.values() for seed in seeds)
        cells = []
        for suite in suites:
            joined = "".join(ran[suite][seed][:size] for seed in seeds) if suite in ran else ""
            cells.append(_share(joined))
        rows.append(([model_text(loss, defense), f"{size * len(seeds):,}"], cells))
    if not rows:
        return []
    text = "Adversarial R@1 with its 95% interval on the same queries, those that all of a model's suites attacked."
    return ["", text, *wide_table(["model", "queries"], [f"`{suite}`" for suite in suites], rows)]


def _share(marks: str) -> str:
    if not marks:
        return MISSING
    survive = marks.count("1")
    return f"{survive / len(marks):.3f} {interval(*wilson(survive, len(marks)))}"


def paired_section(records: Sequence[Record], eps: float, figures: Figures) -> list[str]:
    """Compare defences of a loss on the same queries by McNemar's exact test, see :mod:`dml.reporting.paired`.

    Every two of up to six defences are compared; of more, each with the paper's and with the one ahead of all.

    Args:
        records: of one dataset and suite.
        eps: the radius.
        figures: gives the order of the defences.
    """
    key = eps_key(eps)
    own = [r for r in sort_records(records, figures) if r["claims"] and r["loss"] != CONTROL and key in r["survival"]]
    check_alike(own)
    defenses = {record["defense"] for record in own}
    compared = defenses
    if len(defenses) > 6:
        compared = {figures.paper, ranked(comparison(own, eps, figures))["defense"].iloc[0]}
    rows = []
    for loss, (first, second) in itertools.product(
        sorted({record["loss"] for record in own}),
        itertools.combinations(order((record["defense"] for record in own), figures), 2),
    ):
        if not {first, second} & compared:
            continue
        pairs = same_queries(own, (loss, first), (loss, second), key)
        found = in_r1(pairs, key)
        if found is None:
            continue
        names = [
            spell(side[0]["defense"]) + (MARK if any(gates_of(record) == "fail" for record in side) else "")
            for side in zip(*pairs, strict=True)
        ]
        counts = [f"{number:,}" for number in (found.queries, found.ahead, found.behind)]
        rows.append([spell(loss), *names, *counts, chance_text(found.chance)])
    if not rows:
        return []
    return [
        "",
        "How many queries survive under one of the two defences only, or under more of its seeds, and the probability "
        "of so uneven a split if both were equally good (McNemar's exact test, two-sided).",
        *table(["loss", "A", "B", "queries", "A only", "B only", "p"], rows),
    ]


def seeds_section(records: Sequence[Record], eps: float, figures: Figures) -> list[str]:
    """Show mean and t-interval over independent trainings, where there are several.

    Args:
        records: of one dataset.
        eps: the radius.
        figures: gives the order of the models.
    """
    rows = []
    trained = [record for record in sort_records(records, figures) if record["loss"] != CONTROL]
    for suite in suites_of(trained):
        own = of_suite(trained, suite)
        check_alike(own)
        for model in dict.fromkeys((record["loss"], record["defense"]) for record in own):
            several = [record for record in own if (record["loss"], record["defense"]) == model]
            left = [row["r1"] for record in several for row in record["rows"] if _is_worst(row, eps)]
            if len(left) < 2:
                continue
            mean, low, high = over_seeds(left)
            mark = MARK if any(gates_of(record) == "fail" for record in several) else ""
            cell = f"{mean:.3f}{mark} {interval(max(low, 0.0), min(high, 1.0))}"
            rows.append([f"`{suite}`", *map(spell, model), str(len(left)), cell])
    if not rows:
        return []
    text = "Mean adversarial R@1 of independent trainings with its 95% t-interval, cut to [0, 1]."
    return ["", text, *table(["suite", "loss", "defence", "trainings", "R@1"], rows)]


def _is_worst(row: Mapping[str, Any], eps: float) -> bool:
    return row["attack"] == "worst" and row["norm"] == "linf" and bool(np.isclose(row["eps"], eps))


def collapse_section(records: Sequence[Record], figures: Figures) -> list[str]:
    """Show how the embeddings of trained models fill their sphere, one row per model.

    Args:
        records: of one dataset; the same model under several suites is shown once.
        figures: gives the order of the models.
    """
    held = [record for record in records if record["embedding"] and record["loss"] != CONTROL]
    models = {(record["loss"], record["defense"], record["seed"]): record for record in held}
    own = sort_records(list(models.values()), figures)
    if not own:
        return []
    several = len({record["seed"] for record in own}) > 1
    rows = []
    for record in own:
        found = record["embedding"]
        name = model_text(record["loss"], record["defense"]) + (f", seed {record['seed']}" if several else "")
        spread = [number(found.get(key), 2) for key in ("top_share", "intra", "inter", "ratio")]
        rows.append([name, f"{found['effective_rank']:.1f}", *spread, collapsed(record) or "no"])
    return [
        "",
        "A collapsed embedding is hard to move, and looks robust for that reason alone. It counts as such if its "
        f"effective rank uses less than {LEAST_RANK:.0%} of the directions, or if classes are less than "
        f"{LEAST_DISTANCE:g} apart. Distances are means over pairs. A collapsed model is marked {MARK}.",
        *table([*COLLAPSE, "collapsed"], rows),
    ]
