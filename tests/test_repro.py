"""The pipeline's stages: what changed, what keeps others out, and the graph of dvc.yaml."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from dvc.exceptions import DvcException
from dvc.lock import Lock
from dvc.repo import Repo

from dml.common.files import ROOT
from dml.pipeline import repro
from dml.pipeline.repro import graph, outdated

DIAMOND = {"figures": {"a", "b"}, "a": {"data"}, "b": {"data"}, "data": set(), "alone": set()}


def test_what_did_not_change_is_not_looked_at() -> None:
    assert outdated(DIAMOND, set()) == {}
    assert outdated(DIAMOND, {"a"}) == {"a": set(), "figures": {"a"}}
    assert outdated(DIAMOND, {"data", "alone"}) == DIAMOND


def test_the_stages_of_dvc_yaml() -> None:
    found = graph(Repo(str(ROOT)))
    assert found["digests"] == set()
    assert found["prepare@glyphs"] == {"digests", "data.dvc"}
    assert {"prepare@glyphs", "digests"} < found["attack@glyphs-triplet-robust-0-quick"]
    assert "dependence" in found["figures"]


def test_a_second_run_of_the_pipeline_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(repro, "Repo", lambda root: SimpleNamespace(tmp_dir=str(tmp_path)))
    monkeypatch.setattr(repro, "_run_outdated", lambda *given: 0)
    monkeypatch.setattr("dvc.lock.DEFAULT_TIMEOUT", 0)
    with Lock(str(tmp_path / "dml-repro.lock")):
        assert repro.main(["--jobs", "1"]) == 1
    assert capsys.readouterr().err == "another process runs this pipeline; wait until it has ended, then start again\n"
    assert repro.main(["--jobs", "1"]) == 0, "the lock of one that has ended is no obstacle"


def test_what_dvc_cannot_read_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def unreadable(root: str) -> None:
        raise DvcException("'dvc.lock' is invalid.\n  while parsing, line 3")

    monkeypatch.setattr(repro, "Repo", unreadable)
    assert repro.main(["--jobs", "1"]) == 1
    assert capsys.readouterr().err == "DVC: 'dvc.lock' is invalid. while parsing, line 3\n"


def test_data_dvc_is_of_the_files_that_are_committed() -> None:
    """Otherwise `make repro` would change it in a fresh clone."""
    (out,) = yaml.safe_load((ROOT / "data.dvc").read_text(encoding="utf-8"))["outs"]
    listed = subprocess.run(["git", "ls-files", "data"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.splitlines()]
    assert (out["nfiles"], out["size"]) == (len(files), sum(file.stat().st_size for file in files))
