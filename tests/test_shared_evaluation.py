"""Several processes find of every query, and of every gate, what one process finds."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dml.common.files import ROOT
from dml.common.processes import shared_out
from dml.config.load import load
from dml.pipeline.attacking import check_surrogates, main
from dml.pipeline.stages.prepare import prepare

WORDS = ["glyphs", "none", "pixels_8", "quick"]
CHANGES: dict[str, Any] = {
    "recipes.glyphs.data.options": {"images_per_class": 4, "size": 32, "seed": 0},
    "suites.quick.queries": 250,  # three chunks, and two processes
    "suites.quick.attacks": {"soft_margin": {"steps": 3, "classes": 2, "target_steps": 2}},
    "suites.quick.gate_tries": 3,
}


def attacked(workspace: Path, capsys: pytest.CaptureFixture, changes: dict[str, Any]) -> list[str]:
    """Attack from the command line; return what it printed."""
    assert main([*WORDS, "--workspace", str(workspace), "--changes", json.dumps(CHANGES | changes)]) == 0
    return capsys.readouterr().out.splitlines()


def found(workspace: Path) -> list[bytes]:
    """Every outcome, and the record."""
    (outcomes,) = workspace.rglob("outcomes.csv")
    return [outcomes.read_bytes(), (workspace / "results/runs/glyphs/none-pixels_8-0/quick.json").read_bytes()]


def test_two_processes_find_what_one_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process, two that the evaluation starts itself, and two that torchrun starts."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    prepare("glyphs", workspace=str(tmp_path), changes=CHANGES)
    capsys.readouterr()
    alone = attacked(tmp_path, capsys, {})
    one = found(tmp_path)
    both = attacked(tmp_path, capsys, {"run.devices": 2})
    assert found(tmp_path) == one
    assert [line.split()[1] for line in alone if "attacked" in line] == ["100/250", "200/250", "250/250"]
    assert [line.split()[1] for line in both if "attacked" in line] == ["100/250", "150/250", "250/250"]
    assert both[-2] == alone[-2]
    assert "gates: " in both[-2]

    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "dml", "attack"]
    options = ["--workspace", str(tmp_path), "--changes", json.dumps(CHANGES)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*run, *WORDS, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert found(tmp_path) == one
    assert done.stdout.splitlines()[0] == alone[0]


def test_a_process_alone_does_all_the_work() -> None:
    assert shared_out([1, 2, 3], str) == ["1", "2", "3"]


def test_an_unknown_suite_is_one_sentence(capsys: pytest.CaptureFixture) -> None:
    assert main([*WORDS[:3], "quik"]) == 1
    assert "quik" in capsys.readouterr().err


def test_models_that_gates_need_are_asked_for_before_the_attack(tmp_path: Path) -> None:
    """Those of the same seed, and one more; a suite that no claim rests on needs none."""
    target = SimpleNamespace(dataset="glyphs", loss="triplet", defense="robust", seed=7, params=load())
    target.suite, target.workspace = SimpleNamespace(claims=True), str(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"train these first: .*`python -m dml train glyphs triplet standard --"
    ):
        check_surrogates(target)
    for name in ("triplet-standard-7", "contrastive-standard-100"):
        (tmp_path / "artifacts" / "models" / "glyphs" / name).mkdir(parents=True)
    check_surrogates(target)
    target.defense, target.loss = "act", "contrastive"
    with pytest.raises(FileNotFoundError, match=r"contrastive standard --seed 7`, .*contrastive robust --seed 7`$"):
        check_surrogates(target)
    target.suite.claims = False
    check_surrogates(target)
    target.suite.claims, target.loss = True, "none"
    check_surrogates(target)
