"""Sections of a page on how its numbers were made: settings, the cost of training, stale runs."""

from collections.abc import Mapping, Sequence

import numpy as np

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.reporting.kinds import counts_groups
from dml.reporting.records import Record, Stale
from dml.reporting.spelling import (
    CONTROL,
    MISSING,
    count,
    details,
    number,
    settings_text,
    spell,
    table,
    time_text,
)
from dml.reporting.trust import sort_records

COST = (
    "How many images the model embedded in training, those of the adversary included, relative to the baseline; which "
    "epoch was kept in each training (a model of the first hardly differs from what its training began with); and "
    "wall-clock time, as each training took it beside whatever else ran. Times of single trainings differ by a factor "
    "of several for that reason alone. Trainings of one model on two kinds of machine have two rows."
)


def cost_section(records: Sequence[Record], figures: Figures) -> list[str]:
    """Show how many images each training embedded, relative to the baseline's of the same loss, and its time."""
    times: dict[tuple[str, str, str], dict[int, float]] = {}
    embedded = {(record["loss"], record["defense"]): record["embedded"] for record in records}
    kept: dict[tuple[str, str, str], dict[int, str]] = {}
    counted: set[tuple[str, str, int]] = set()  # a model stands in the records of several suites
    ordered = sort_records(records, figures)
    for record in sorted(ordered, key=counts_groups):  # a model may have been trained again for those that count groups
        machine, model = record.get("machine", {}), (record["loss"], record["defense"], record["seed"])
        seconds = machine.get("seconds", {}).get("training")
        if seconds and record["loss"] != CONTROL and model not in counted:
            counted.add(model)
            key = (record["loss"], record["defense"], machine.get("device", "unknown"))
            times.setdefault(key, {})[record["seed"]] = seconds
            kept.setdefault(key, {})[record["seed"]] = str(record.get("epoch_kept", MISSING))
    rows = []
    for (loss, defense, device), seconds in times.items():
        mean = float(np.mean(list(seconds.values())))
        own, base = embedded[loss, defense], embedded.get((loss, figures.baseline))
        relative = f"{own / base:.1f}" if own and base else MISSING
        chosen = ", ".join(kept[loss, defense, device].values())
        rows.append([spell(loss), spell(defense), str(len(seconds)), relative, chosen, time_text(mean), device])
    if not rows:
        return []
    images = f"images / {figures.baseline}"
    return table(["loss", "defence", "trainings", images, "epoch kept", "mean time", "device"], rows)


def cost_page(by_dataset: Mapping[str, Sequence[Record]], figures: Figures) -> str:
    """Return results/cost.md: times differ from run to run, so they stand on a page that no stage depends on.

    Args:
        by_dataset: dataset -> its current records.
        figures: what results/ reports.
    """
    lines = ["# Cost of training", "", COST]
    for dataset, records in by_dataset.items():
        if cost := cost_section(records, figures):
            lines += ["", f"## {dataset}", *cost]
    return "\n".join(lines) + "\n"


def settings_section(records: Sequence[Record]) -> list[str]:
    """Show the settings of models, losses, defences and suites, one row each."""
    rows: dict[str, str] = {}
    for record in records:
        settings, control = record["settings"], record["loss"] == CONTROL
        named = {
            "data": "images",
            "model": "model",
            "validation": "validation",
            "loss": f"loss `{record['loss']}`",
            "defense": f"defence `{record['defense']}`",
            "schedule": f"schedule of `{record['defense']}`",
            "suite": f"suite `{record['suite']}`",
        }
        for key, label in named.items():
            if key in settings and not (control and key not in ("data", "suite")):
                rows.setdefault(label, settings_text(settings[key]))
    return table(["of", "settings"], [[label, f"`{text}`"] for label, text in rows.items()]) if rows else []


def stale_section(stale: Sequence[Stale]) -> list[str]:
    """List what was measured with settings or code of the past, with its figures; they are shown nowhere else."""
    if not stale:
        return []
    rows = []
    for record, reason in stale:
        worst = [row for row in record.get("rows", []) if row["attack"] == "worst"]
        left = ", ".join(f"{row['r1']:.3f} at {radius_text(row['eps'])}" for row in worst)
        model = f"{spell(record['loss'])}, {spell(record['defense'])}, seed {record['seed']}"
        natural = number(record.get("natural", {}).get("r1"))
        rows.append([model, f"`{record['suite']}`", natural, left or MISSING, reason])
    text = (
        "These runs were made with other settings or code than now. No table, figure or claim above uses them, and "
        "they are not comparable with it."
    )
    listed = table(["model", "suite", "natural R@1", "adversarial R@1", "reason"], rows)
    return ["", "## Stale runs", "", text, *details(count(len(stale), "run"), listed)]
