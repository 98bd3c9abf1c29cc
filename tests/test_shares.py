"""What programs side by side get of a machine; GPUs are only named here."""

import os

import pytest

from dml.pipeline import repro, shares, study
from dml.pipeline.shares import Shares, cores, gpus, most, shares_of


@pytest.mark.parametrize(
    ("visible", "names"), [(None, ["0", "1"]), ("3, 5", ["3", "5"]), ("GPU-a,GPU-b,-1", ["GPU-a", "GPU-b"])]
)
def test_gpus_are_those_that_the_user_left_visible(
    visible: str | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == names


def test_one_program_a_gpu_unless_each_takes_several() -> None:
    assert most(1, ["0", "1", "2"]) == 3
    assert most("auto", ["0", "1", "2"]) == most(2, ["0", "1", "2"]) == 1
    assert most(1, []) == most("auto", []) == cores()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not say which cores are allowed")
def test_cores_are_those_that_the_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == most(1, []) == 1
        assert Shares(1).threads == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert cores() == len(allowed)


def test_each_program_gets_the_least_used_gpu() -> None:
    lent = Shares(3, ["4", "7"])
    with lent.one() as first, lent.one() as second:
        assert (first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("4", "7")
        with lent.one() as third:
            assert third["CUDA_VISIBLE_DEVICES"] == "4", "more programs than GPUs share"
    with lent.one() as first, pytest.raises(RuntimeError), lent.one() as second:
        raise RuntimeError("a program that fails gives its GPU back")
    with lent.one() as first, lent.one() as second:
        assert {first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]} == {"4", "7"}


def test_a_program_alone_keeps_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(shares, "gpus", lambda: ["0", "1"])
    for jobs, devices in ((1, 1), (None, "auto"), (2, 2)):
        _, lent = shares_of(jobs, devices)
        with lent.one() as environment:
            assert "CUDA_VISIBLE_DEVICES" not in environment, (jobs, devices)
    jobs, lent = shares_of(None, 1)
    with lent.one() as first, lent.one() as second:
        assert (jobs, first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == (2, "0", "1")


def test_cores_are_divided() -> None:
    with Shares(cores()).one() as environment:
        assert environment["OMP_NUM_THREADS"] == "1"
    with Shares(1).one() as environment:
        assert environment["OMP_NUM_THREADS"] == str(cores())


@pytest.mark.parametrize("command", [repro, study])
def test_no_jobs_at_all_is_a_sentence(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--jobs", "0"])
    assert "argument --jobs: 0; it must be at least 1" in capsys.readouterr().err
