"""Images that several jobs need at once are prepared by one of them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dml.__main__ import main
from dml.common.files import ROOT
from dml.config.build.source import source
from dml.config.load import load
from dml.data.prepare import prepare as write
from dml.pipeline import preparing
from dml.pipeline.preparing import changed

FEW = {"recipes.glyphs.data.options": {"images_per_class": 20, "size": 32, "seed": 0}}
PROGRAM = "import sys, json; from dml.pipeline.preparing import prepare_missing as p; p(*json.loads(sys.argv[1]))"


def test_jobs_that_start_together_prepare_once(tmp_path: Path) -> None:
    given = json.dumps(["glyphs", str(tmp_path), FEW])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", PROGRAM, given]
    jobs = [subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    told = [job.communicate()[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], told
    assert sum("preparing glyphs" in text for text in told) == 1
    assert (tmp_path / "artifacts/data/glyphs/settings.json").is_file()


def test_the_command_prepares_and_names_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str]] = []
    real = preparing.prepare_missing

    def elsewhere(name: str, workspace: str, changes: dict[str, object]) -> None:
        asked.append((name, workspace))
        real(name, str(tmp_path), changes | FEW)  # others than `make repro` may have prepared in this clone

    monkeypatch.setattr(preparing, "prepare_missing", elsewhere)
    assert main(["prepare", "glyphs"]) == 0
    assert asked == [("glyphs", ".")]
    assert (tmp_path / "artifacts/data/glyphs/settings.json").is_file()
    assert "artifacts/data/glyphs is there" in capsys.readouterr().out
    assert main(["prepare", "glyfs"]) == 1
    assert "did you mean 'glyphs'?" in capsys.readouterr().err


def test_images_that_changed_are_prepared_again(
    picture_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, prepared = picture_folder(classes=12, images=4), tmp_path / "prepared"
    data = replace(load().recipe("flowers").data, path=str(raw), size=16)
    write(source(data), prepared, name="pictures", size=16, train_fraction=0.5, validation_fraction=0.34)
    assert not changed(data, prepared)
    os.utime(raw)  # newer, but the same
    assert not changed(data, prepared)
    next(raw.rglob("*.png")).unlink()
    os.utime(prepared / "about.json", (0, 0))  # clocks of file systems are coarse
    assert changed(data, prepared)
    (raw / "link").symlink_to(tmp_path / "nowhere")
    (raw / "labels.csv").write_text("nothing of use")
    assert not changed(data, prepared), "raw images that cannot be read"
    assert "cannot be read, so the prepared images are used as they are" in capsys.readouterr().out
    shutil.rmtree(raw)
    assert not changed(data, prepared), "prepared images outlive the raw ones"
