"""The printed tables of an evaluation."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dml.api.summary import MODEL, ranks_of
from dml.reporting.spelling import control_kind, interval

if TYPE_CHECKING:
    from dml.api.result import Result


def name_text(model: str) -> str:
    """Return the name of the model, or of a control with a word on its training."""
    return model if model == MODEL else f"{model}, {control_kind(model)}"


def natural_text(scores: Mapping[str, float]) -> str:
    """Return the natural scores of all queries as people compare them with those of other evaluations."""
    shown = [
        f"{'MAP@R' if name == 'map_r' else f'R@{name[1:]}'} {scores[name]:.3f}" for name in scores if name != "queries"
    ]
    return f"natural, over all {scores['queries']:,} queries: {', '.join(shown)}"


def table(result: "Result") -> list[str]:
    """Return the lines of R@1 and MAP@R left, one per model and radius."""
    head = ("", "eps", "natural R@1", "R@1 left (95% interval)", "natural MAP@R", "MAP@R left")
    rows = [
        (
            name_text(row.model),
            result.radius(row.eps),
            f"{row.natural_r1:.3f}",
            f"{row.r1:.3f} {interval(row.r1_low, row.r1_high)}",
            f"{row.natural_map_r:.3f}",
            f"{row.map_r:.3f}",
        )
        for row in result.summary.itertuples()
    ]
    return columns([head, *rows])


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def scores(result: "Result") -> list[str]:
    """Return the lines of R@k and MAP@R of the model at the largest radius."""
    summary = result.summary
    row = summary[summary["model"] == MODEL].iloc[-1]
    names = {f"R@{name[1:]}": name for name in ranks_of(summary) if not math.isnan(row[name])} | {"MAP@R": "map_r"}

    def text(name: str) -> str:
        return f"{row[name]:.3f} {interval(row[f'{name}_low'], row[f'{name}_high'])}"

    head = (f"{MODEL} at {result.radius(row['eps'])}", "natural (95% interval)", "left (95% interval)")
    return columns([head, *((word, text(f"natural_{name}"), text(name)) for word, name in names.items())])


def by_attack(result: "Result") -> list[tuple[str, ...]]:
    """Return the rows of what each attack leaves by itself, for a suite whose attacks all meet all queries; else none.

    The first holds the names of the columns.
    """
    if not result.about["settings"].get("alone"):
        return []
    rows = [
        (row.attack, result.radius(row.eps), f"{row.r1:.3f} {interval(row.r1_low, row.r1_high)}", f"{row.map_r:.3f}")
        for row in result.by_attack.itertuples()
    ]
    return [("attack", "eps", "R@1 left (95% interval)", "MAP@R left"), *rows]
