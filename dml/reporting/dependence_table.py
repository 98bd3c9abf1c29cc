"""The table of chapter 6: what each training of the study perturbs, and what it achieves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dml.common.table import find
from dml.config.build import training as build
from dml.config.run import Figures
from dml.defenses.base import Perturbs
from dml.losses import LOSSES
from dml.losses.base import TupleLoss
from dml.reporting.records import Record
from dml.reporting.sections import marked
from dml.reporting.spelling import MISSING, interval, number, settings_text, spell, table
from dml.reporting.tables import collapsed, comparison
from dml.reporting.variants import KIND, differences, leaves

PERTURBED = [KIND, *(f"defense.{name}" for name in ("target", "targets", "scope", "remine"))]  # in separate columns


ELEMENTS = {"query": "each query", "image": "every image"}
SHARED = {
    "slot": "one role of one tuple",
    "role": "one role of all its tuples",
    "tuple": "one tuple, all roles at once",
    "image": "all tuples of the image",
    "query": "nothing else",
    "batch": "all queries",
}
REMINED = {None: MISSING, "none": "never", "after": "after perturbing", "each": "at each step"}


def perturbs(settings: Mapping[str, Any], tuples: bool = True) -> Perturbs | None:
    """Return what a defence perturbs, see :meth:`dml.defenses.base.Defense.perturbs`.

    Args:
        settings: of the defence in a record: its ``name``, and ``defense`` where the class has another name.
        tuples: whether the loss is on tuples.
    """
    given = {key: value for key, value in settings.items() if key != "name"}
    return build.defense(settings["name"], given).perturbs(tuples)


def described(settings: Mapping[str, Any], tuples: bool = True) -> tuple[str, str, str]:
    """Return what a defence perturbs, how far a perturbation is shared, and when tuples are selected again, in words.

    Args:
        settings, tuples: see :func:`perturbs`.
    """
    found = perturbs(settings, tuples)
    if found is None:
        return MISSING, MISSING, MISSING
    elements = ", ".join(ELEMENTS.get(element, element) for element in found.elements)
    return elements, SHARED[found.shared], REMINED[found.remine]


def settings_table(records: Sequence[Record], eps: float, figures: Figures) -> list[str]:
    """Show target, scope and re-mining of every training beside what it achieves, one row per defence.

    What else differs from the training of the paper's defence stands behind the name.

    Args:
        records: of one dataset, suite and loss.
        eps: radius of the attack.
        figures: gives the order of the defences.
    """
    rows = []
    loss = records[0]["settings"]["loss"].get("loss", records[0]["loss"])  # it may stand under another name
    tuples = issubclass(find(LOSSES, loss, "loss"), TupleLoss)
    first = sorted(records, key=lambda record: record["defense"] != figures.paper)  # its variants are next best
    paper = next((found for found in map(leaves, first) if found[KIND] == figures.paper), {})
    for row in comparison(records, eps, figures).itertuples():
        own = [record for record in records if record["defense"] == row.defense]
        other = differences(leaves(own[0]), paper, PERTURBED)
        held = [record for record in own if record["embedding"]]
        ranks = [record["embedding"]["effective_rank"] for record in held]
        cells = [
            " ".join([spell(row.defense), *([f"`{settings_text(other)}`"] if other else [])]),
            *described(own[0]["settings"]["defense"], tuples),
            f"{row.natural:.3f} {interval(row.natural_low, row.natural_high)}",
            marked(row.r1, row.r1_low, row.r1_high, row.gates, bold=True),
            number(float(np.mean(ranks)) if ranks else None, 1),
            _collapses([collapsed(record) for record in held]),
        ]
        rows.append(cells)
    header = ["training", "perturbed", "shared by", "re-mined", "natural R@1", "adversarial R@1"]
    return table([*header, "effective rank", "collapsed"], rows)


def _collapses(reasons: Sequence[str]) -> str:
    """In how many trainings the embedding collapsed, and why in the first of them."""
    fell = [reason for reason in reasons if reason]
    if not reasons:
        return MISSING
    if not fell:
        return "no"
    return f"{f'{len(fell)} of {len(reasons)}' if len(reasons) > 1 else 'yes'}: {fell[0]}"


def missing(wanted: Sequence[tuple[str, int]], current: Sequence[Record], stale: Sequence[Record]) -> list[str]:
    """Return which defences of the study lack a current record, one sentence for all that lack the same.

    Args:
        wanted: defence and seed of each training of the study.
        current: records of one loss that today's settings and code would make again.
        stale: records that they would not.
    """
    held, old = ({(record["defense"], record["seed"]) for record in records} for records in (current, stale))
    found: dict[tuple[str, str], list[str]] = {}
    for defense in dict.fromkeys(name for name, _ in wanted):
        lacks = [run for run in wanted if run[0] == defense and run not in held]
        if lacks:
            whole = len(lacks) == sum(name == defense for name, _ in wanted)
            seeds = "" if whole else f" with seed {', '.join(str(seed) for _, seed in lacks)}"
            word = "current record" if old.intersection(lacks) else "record"
            found.setdefault((word, seeds), []).append(defense)
    return [f"no {word} of {', '.join(names)}{seeds} yet: run `make study`" for (word, seeds), names in found.items()]
