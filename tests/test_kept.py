"""What a training and an evaluation leave on disk, at their end and when they die just before it."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dml.config.build import evaluation as build
from dml.config.load import load
from dml.data.base import Dataset, Split
from dml.data.sampling import attacked_rows
from dml.defenses.standard import Standard
from dml.evaluation.controls import Pixels8
from dml.pipeline.recording import keep
from dml.pipeline.stages import attack
from dml.pipeline.stages import train as stage
from dml.pipeline.stages.prepare import prepare
from dml.reporting import records
from dml.retrieval.index import Search

SUITES = {
    "ranking": {"kind": "ranking", "queries": 6, "eps": [0.03], "steps": 1},
    "poisoning": {"kind": "poisoning", "queries": 6, "eps": [0.03], "items": 1, "steps": 1},
    "certified": {"kind": "certified", "queries": 6, "eps": [0.05], "samples": 10, "steps": 1, "draws": 1},
}


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_without_claims_keeps_outcomes_and_a_record(name: str, toy_split: Split, tmp_path: Path) -> None:
    """No gates, no examples, and nothing of the unfinished evaluation, whether its folder was there or not."""
    params = load({f"suites.{name}": SUITES[name]})
    suite, search = build.suite(params.suite(name)), Search.over(Pixels8(), toy_split)
    names = ("glyphs", "none", "pixels_8", 0, name)
    data, rows = Dataset(toy_split, toy_split, toy_split), attacked_rows(6, len(search), 0)
    target = attack.Target(*names, params, params.recipe("glyphs"), suite, data, search, rows, None, str(tmp_path))
    found = attack.run_suite(target)
    checked, shown = attack.run_gates(target, found), attack.look(target)
    assert checked.empty
    assert shown is None

    file = keep(target, found, checked, shown)
    assert not target.unfinished.exists()
    first = file.read_bytes()
    assert keep(target, found, checked, shown).read_bytes() == first, "without a folder of unfinished work"
    folder = tmp_path / "artifacts/attacks/glyphs/none-pixels_8-0" / name
    assert [kept.name for kept in folder.iterdir()] == ["outcomes.csv"]
    assert len(pd.read_csv(folder / "outcomes.csv")) == len(found.evaluation.outcomes)
    (record,) = records.read(tmp_path / "results/runs")
    assert (record["suite"], record["gates"], record["claims"]) == (name, [], False)
    assert len(record["rows"]) == len(found.summary)
    assert record["scores"] == found.evaluation.scores


class Death(Exception):
    """What ends a training after its weights were written."""


RECIPE = "recipes.glyphs."
TINY = {
    RECIPE + "data.options": {"images_per_class": 4, "size": 32, "seed": 0},
    RECIPE + "schedule": {"epochs": 1, "batches": 1, "classes": 5, "images_per_class": 3, "learning_rate": 1e-4},
    RECIPE + "validation": {"queries": 5, "eps": 0.03, "steps": 1},
    "suites.quick.queries": 10,
}
LONGER = TINY | {RECIPE + "schedule.epochs": 2}


def test_a_training_that_dies_before_its_end_has_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two trainings by hand under one name die when their weights are written; each ends from its own state."""
    prepare("glyphs", workspace=str(tmp_path), changes=TINY)
    folder = tmp_path / "artifacts/models/glyphs/triplet-standard-0"
    keep, weights, states = stage._keep, {}, {}

    def trained(changes: dict[str, Any]) -> stage.Training:
        return stage.train("glyphs", "triplet", "standard", 0, workspace=str(tmp_path), changes=changes)

    def dying(*given: Any) -> None:
        keep(*given)
        raise Death

    def untouched(*given: Any) -> None:
        raise AssertionError("a step of a finished training")

    monkeypatch.setattr(stage, "_keep", dying)
    for name, changes in (("short", TINY), ("long", LONGER)):
        with pytest.raises(Death):
            trained(changes)
        weights[name] = (folder / "weights.safetensors").read_bytes()
        (states[name],) = set((tmp_path / "glyphs").glob("*.pt")) - set(states.values())

    monkeypatch.setattr(stage, "_keep", keep)
    monkeypatch.setattr(Standard, "forward", untouched)
    for name, changes, epochs in (("short", TINY, 1), ("long", LONGER, 2)):
        assert len(trained(changes).history.epochs) == epochs
        assert (folder / "weights.safetensors").read_bytes() == weights[name]
        assert json.loads((folder / "settings.json").read_text())["settings"]["schedule"]["epochs"] == epochs
        assert not states[name].exists()
        assert states["long"].exists() == (name == "short")
