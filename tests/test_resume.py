"""A training that dies at any step goes on where it was, and ends as if it had never died."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dml.common.files import ROOT
from dml.data.base import Split
from dml.defenses.base import Defense
from dml.defenses.ca_tride import CATRIDE
from dml.defenses.fare import FARE
from dml.defenses.hardness import Hardness
from dml.losses.triplet import Triplet
from dml.models.embedder import build
from dml.training.checkpoint import Checkpoint
from dml.training.loop import History, fit
from dml.training.schedule import Schedule
from dml.training.selection import validator

SCHEDULE = Schedule(epochs=2, batches=4, classes=4, images_per_class=3, averaging=0.5, shift=1, flip=True)


class Death(Exception):
    """What ends a training half-way."""


def train(
    split: Split, defense: Defense, dies: int | None = None, **changes: Any
) -> tuple[list[Tensor], History, list]:
    """Train; in its step number ``dies``, counted from 0 in this process, the defence raises."""
    steps = iter(range(99))

    def dying(module: Defense, given: tuple, losses: Tensor) -> None:
        if next(steps) == dies:
            raise Death

    defense.register_forward_hook(dying)
    model, lines = build("conv4", 8, seed=0, statistics=split.statistics()), []
    validate = validator(split, queries=6, eps=0.03, steps=1, seed=0)
    given = {"seed": 0, "validate": validate, "report": lines.append, "timing": lambda line: None} | changes
    history = fit(model, split, Triplet(6, 8, miner="distance_weighted"), defense, SCHEDULE, **given)
    return [*model.state_dict().values(), *defense.buffers()], history, lines


@pytest.mark.parametrize(("kind", "crop"), [(Hardness, 0), (CATRIDE, 0), (FARE, 16)])
def test_a_training_that_dies_in_any_step_ends_the_same(
    kind: type[Defense], crop: int, toy_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies in its third step, resumes, dies in the first step, and so on. Each defence keeps state."""
    changed = Schedule(**vars(SCHEDULE) | {"crop": crop, "shift": 0 if crop else 1})
    monkeypatch.setattr(sys.modules[__name__], "SCHEDULE", changed)
    weights, history, lines = train(toy_split, kind(steps=1))
    checkpoint, places = Checkpoint(tmp_path / "state.pt", "key"), []
    for dies in (2, 0, 2, 1, 2):  # in steps 2, 2, 4 (the first of an epoch), 5 and 7 of the training
        with pytest.raises(Death):
            train(toy_split, kind(steps=1), dies, checkpoint=checkpoint, every=0.0, timing=places.append)
    resumed, again, told = train(toy_split, kind(steps=1), checkpoint=checkpoint, every=0.0)
    assert [place for place in places if "resumed" in place] == [
        "resumed after step 2/4 of epoch 1",
        "resumed after step 2/4 of epoch 1",
        "resumed after epoch 1",
        "resumed after step 1/4 of epoch 2",
    ]
    assert all(torch.equal(first, second) for first, second in zip(weights, resumed, strict=True))
    assert again == history
    assert told == lines


def test_the_state_is_saved_when_it_is_time(toy_split: Split, tmp_path: Path) -> None:
    """Within an epoch only after ``every`` seconds; at its end always."""
    saved = []

    class Told(Checkpoint):
        def save(self, state: dict[str, Any]) -> None:
            saved.append((len(state["history"]["epochs"]), state["done"]))

    for every, expected in ((60.0, [(1, 0), (2, 0)]), (0.0, [(e, s) for e in (0, 1) for s in (1, 2, 3, 4)])):
        saved.clear()
        train(toy_split, Hardness(steps=1), checkpoint=Told(tmp_path / "state.pt", "key"), every=every)
        assert set(expected) <= set(saved)
        assert len(saved) == len(set(expected) | {(1, 0), (2, 0)})


def test_a_process_killed_at_random_moments(tmp_path: Path) -> None:
    """SIGKILL, three times, by the script that does it twenty times."""
    script = ROOT / "tests" / "faults" / "kill_training.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "3", "--epochs", "6"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"]
    assert found["resumed"] > 0
