"""Stages side by side: order, failures, and the graph of dvc.yaml."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from dvc.exceptions import DvcException
from dvc.lock import Lock
from dvc.repo import Repo
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.common.files import ROOT
from dml.pipeline import repro
from dml.pipeline.repro import dependents, graph, in_order, outdated

DIAMOND = {"figures": {"a", "b"}, "a": {"data"}, "b": {"data"}, "data": set(), "alone": set()}


def test_all_that_depends_on_a_stage() -> None:
    assert dependents(DIAMOND, "data") == {"a", "b", "figures"}
    assert dependents(DIAMOND, "a") == {"figures"}
    assert dependents(DIAMOND, "figures") == set()


def test_what_did_not_change_is_not_looked_at() -> None:
    assert outdated(DIAMOND, set()) == {}
    assert outdated(DIAMOND, {"a"}) == {"a": set(), "figures": {"a"}}
    assert outdated(DIAMOND, {"data", "alone"}) == DIAMOND


def test_what_most_depend_on_comes_first() -> None:
    order: list[str] = []
    assert in_order(DIAMOND, lambda stage: order.append(stage) or 0, jobs=1) == []
    assert order == ["data", "a", "b", "figures", "alone"]


def test_as_many_as_allowed_run_at_once() -> None:
    together = threading.Barrier(2, timeout=10)  # breaks, and the stages fail, unless both meet here

    def work(stage: str) -> int:
        if stage in ("a", "b"):
            together.wait()
        return 0

    assert in_order(DIAMOND, work, jobs=2) == []


def test_nothing_starts_after_a_failure() -> None:
    order: list[str] = []

    def work(stage: str) -> int:
        order.append(stage)
        return int(stage == "a")

    assert in_order(DIAMOND, work, jobs=1) == ["a"]
    assert order == ["data", "a"]


@st.composite
def _graphs(draw: st.DrawFn) -> dict[str, set[str]]:
    names = [str(number) for number in range(draw(st.integers(1, 8)))]
    return {name: draw(st.sets(st.sampled_from(names[:place]))) if place else set() for place, name in enumerate(names)}


@settings(max_examples=40, deadline=None)
@given(_graphs(), st.integers(1, 4))
def test_every_stage_runs_once_after_those_it_depends_on(stages: dict[str, set[str]], jobs: int) -> None:
    started, finished, running, most = [], set(), [0], [0]
    lock = threading.Lock()

    def work(stage: str) -> int:
        with lock:
            assert stages[stage] <= finished
            started.append(stage)
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.001)
        with lock:
            running[0] -= 1
            finished.add(stage)
        return 0

    assert in_order(stages, work, jobs) == []
    assert sorted(started) == sorted(stages)
    assert most[0] <= jobs


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
