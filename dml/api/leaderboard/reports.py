"""From the report of an evaluation to entries: one per radius for the model, and for each untrained control in it."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dml.api.about import OWN
from dml.api.gates import GRADIENT
from dml.api.leaderboard.entry import Entry, validated
from dml.api.summary import MODEL
from dml.attacks.balls import radius_text
from dml.common.files import ROOT
from dml.evaluation.gates import WHOLE_RANGE
from dml.reporting.spelling import control_kind

CONTROL = {
    "authors": "The dml contributors",
    "link": "dml/evaluation/controls.py",
    "training_data": "none",
    "architecture": "untrained control",
    "control": True,
    "similarity": "cosine",
    "weights_sha256": None,
    "gates": {"run": 0, "failed": []},
}
"""What an entry of a control has in place of what people say of their models."""


class Told(NamedTuple):
    """What a report does not know of its model; see :class:`dml.api.leaderboard.entry.Entry`."""

    name: str
    authors: str
    link: str
    training_data: str
    architecture: str
    dataset: str
    model: str | None = None
    images: str | None = None


def entries(folder: Path, told: Told, *, show_failing: bool = False) -> list[Entry]:
    """Return the entries of a report, those of the model first.

    A control that was fitted has none: others cannot check a claim against it without its training images.

    Args:
        folder: what :meth:`dml.api.result.Result.save` wrote.
        told: of the model.
        show_failing: accept a model whose gates fail or were not run; the entry says so.

    Raises:
        ValueError: the folder holds no such report, its gates do not hold, or a value is wrong.
    """
    report, outcomes = _read(folder)
    try:
        return _entries(folder, report, outcomes, told, show_failing)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} holds a damaged report: {error} is missing or wrong; evaluate again") from error


def _entries(
    folder: Path, report: dict[str, Any], outcomes: pd.DataFrame, told: Told, show_failing: bool
) -> list[Entry]:
    about = report["about"]
    if about.get("norm", "linf") != "linf":
        raise ValueError(f"{folder} holds an attack in the {about['norm']} ball; the leaderboard has the l-inf ball")
    if about["settings"]["kind"] != "AttackSuite":
        raise ValueError(f"{folder}: the suite {about['suite']} gives no worst-case R@1; evaluate with --suite quick")
    if "://" not in told.link and not (ROOT / told.link).exists():
        raise ValueError(f"link is {told.link!r}; it must begin with https://, or name a file of this repository")
    if told.images is not None and about.get("transformed"):
        raise ValueError(
            f"{folder}: the images went through a transform of yours, which others do not have to check claims with; "
            "evaluate with --size, or leave --images out"
        )
    common = {key: about[key] for key in ("suite", "seed", "queries", "gallery", "classes", "shape", "images_sha256")}
    common["gallery_sha256"] = about.get("gallery_sha256")
    common["settings"] = about["settings"] if about["suite"] == OWN else None
    common |= {"norm": "linf", "versions": about["versions"], "dataset": told.dataset, "images": told.images}
    own = told._asdict() | {"control": False} | {key: about[key] for key in ("similarity", "weights_sha256")}
    found = []
    for row in report["summary"]:
        # At eps 0 stand the natural scores, which every entry has.
        if control_kind(row["model"]) == "fitted" or row["eps"] == 0:
            continue
        of = outcomes[(outcomes["model"] == row["model"]) & np.isclose(outcomes["eps"], row["eps"], atol=1e-6)]
        worst = of[of["attack"] == "worst"].sort_values("query")["r1"]
        if row["model"] == MODEL:
            who = own | {"gates": _gates(report["gates"], row["eps"])}
        else:
            who = CONTROL | {"name": row["model"], "model": None}
        measured = {
            "eps": row["eps"],
            "natural": _scores(row, "natural_"),
            "worst_case": _scores(row, ""),
            "survived": "".join("1" if value else "0" for value in worst),
        }
        entry = validated(common | who | measured, str(folder))
        if not entry.control and not show_failing:
            _hold(entry)
        found.append(entry)
    return found


def _read(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    try:
        report = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        outcomes = pd.read_csv(folder / "outcomes.csv")
        about, rows = report.get("about", {}), report.get("summary") or [{}]
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder} holds no report; give the folder that result.save wrote ({error})") from error
    if not {"weights_sha256", "settings"} <= set(about) or "map_r_low" not in rows[0]:
        raise ValueError(f"{folder} holds a report of an older version; evaluate the model again")
    missing = {"gates", "summary"} - set(report) | {"model", "eps", "attack", "query", "r1"} - set(outcomes.columns)
    if missing:
        raise ValueError(f"{folder} holds a damaged report: it lacks {', '.join(sorted(missing))}; evaluate again")
    if report["gates"] and GRADIENT not in {row["gate"] for row in report["gates"]}:
        raise ValueError(f"{folder} holds a report whose gates do not check gradients; evaluate the model again")
    return report, outcomes


def _scores(row: dict[str, Any], before: str) -> dict[str, dict[str, float]]:
    return {
        name: {"value": row[before + name], "low": row[f"{before}{name}_low"], "high": row[f"{before}{name}_high"]}
        for name in ("r1", "map_r")
    }


def _gates(rows: list[dict[str, Any]], eps: float) -> dict[str, Any]:
    """The gates of a radius: its own, and those at 0 and over the whole range, which are about every radius."""
    of = [row for row in rows if row["eps"] in (eps, 0.0, WHOLE_RANGE)]
    return {"run": len(of), "failed": [row["gate"] for row in of if not row["passed"]]}


def _hold(entry: Entry) -> None:
    """Raise ValueError unless all gates were run and hold."""
    if entry.gates.word != "hold":
        failed = entry.gates.failed
        what = f"{len(failed)} of {entry.gates.run} gates fail ({'; '.join(failed)})" if failed else "no gate was run"
        mend = "mend the model's gradient" if GRADIENT in failed else "evaluate with a stronger suite"
        raise ValueError(
            f"at {radius_text(entry.eps)} {what}, so R@1 left may be too high; {mend}, or show the entry as such with "
            "--show-failing"
        )
