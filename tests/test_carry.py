"""Records carried over: only what was made again the same way, and only where no setting changed."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_records import record

from dml.config.load import load
from dml.pipeline import carry
from dml.pipeline.digest import expected
from dml.reporting.records import Record, run_key, write

RUNS = ("triplet-robust-0", "triplet-standard-0", "none-pixels_8-0")


@pytest.fixture
def stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Record]:
    """Three records of today's settings and of yesterday's code, on disk."""
    monkeypatch.setattr(carry, "ROOT", tmp_path)
    params, found = load(), {}
    for run in RUNS:
        loss, defense, seed = run.split("-")
        made = record(loss, defense, 0.9, 100) | {"dataset": "glyphs", "suite": "quick", "seed": int(seed)}
        made |= {"digests": {"training": "old", "evaluation": "old"}, "weights": f"weights of {run}"}
        made["gates"] = [*made["gates"], made["gates"][0] | {"gate": "broken by images that fool triplet-standard-0"}]
        made["settings"] = carry.today(params, made)
        write(tmp_path / "results" / "runs" / "glyphs" / run / "quick.json", made, {})
        found[run] = made
    return found


def on_disk(run: str) -> dict[str, Any]:
    return json.loads((carry.ROOT / "results" / "runs" / "glyphs" / run / "quick.json").read_text())


def made_again(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any] | None = None) -> list[str]:
    """Stand in for training and attack; the list names the runs that were asked for."""
    asked = []

    def again(dataset: str, loss: str, defense: str, seed: int, suite: str) -> dict[str, Any]:
        asked.append(run := f"{loss}-{defense}-{seed}")
        old = on_disk(run)
        found = {"map_r": {}} | {name: old[name] for name in carry.COMPARED if name in old}
        return found | {"gates": old["gates"][:1]} | (changes or {})  # without the images of another model

    monkeypatch.setattr(carry, "again", again)
    return asked


def test_all_stale_records_follow_those_that_came_out_the_same(
    stale: dict[str, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = made_again(monkeypatch)
    lines = carry.carry("glyphs", "quick", ["triplet-robust-0"])
    assert asked == ["triplet-robust-0"]
    assert sorted(lines) == sorted(f"{run}: carried over" for run in RUNS)
    for run in RUNS:
        found, key = on_disk(run), run_key(stale[run])
        assert found["digests"] == expected(load(), [key])[key]
        assert found["carried"] == ["triplet-robust-0"]
        assert all(found[name] == json.loads(json.dumps(stale[run][name])) for name in ("rows", "gates", "survival"))
    with pytest.raises(ValueError, match="no stale record of suite 'quick'"):
        carry.carry("glyphs", "quick", ["triplet-robust-0"])


@pytest.mark.parametrize("part", carry.COMPARED)
def test_nothing_is_carried_if_one_came_out_differently(
    part: str, stale: dict[str, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_again(monkeypatch, {part: "other"})
    with pytest.raises(ValueError, match=f"triplet-robust-0 came out differently.*{part} differ"):
        carry.carry("glyphs", "quick", ["triplet-robust-0"])
    assert all(on_disk(run)["digests"]["training"] == "old" for run in RUNS)


def test_a_record_of_other_settings_stays_stale(stale: dict[str, Record], monkeypatch: pytest.MonkeyPatch) -> None:
    made_again(monkeypatch)
    file = carry.ROOT / "results" / "runs" / "glyphs" / "triplet-standard-0" / "quick.json"
    changed = on_disk("triplet-standard-0")
    changed["settings"]["schedule"]["epochs"] = 3
    file.write_text(json.dumps(changed))
    lines = carry.carry("glyphs", "quick", ["triplet-robust-0"])
    assert "triplet-standard-0 stays stale: schedule.epochs is 3, not 6" in lines
    assert on_disk("triplet-standard-0")["digests"]["training"] == "old"
    assert on_disk("triplet-robust-0")["digests"]["training"] != "old"


def test_a_record_of_still_older_code_stays_stale(stale: dict[str, Record], monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compared says nothing of a change before it."""
    made_again(monkeypatch)
    file = carry.ROOT / "results" / "runs" / "glyphs" / "triplet-standard-0" / "quick.json"
    changed = on_disk("triplet-standard-0")
    changed["digests"]["evaluation"] = "older"
    file.write_text(json.dumps(changed))
    lines = carry.carry("glyphs", "quick", ["triplet-robust-0"])
    assert "triplet-standard-0 stays stale: older code made it than triplet-robust-0; name it, too" in lines
    assert on_disk("triplet-standard-0")["digests"]["evaluation"] == "older"
    assert on_disk("triplet-robust-0")["digests"]["evaluation"] != "old"


def test_a_new_setting_counts_as_unchanged_at_its_default_only(stale: dict[str, Record]) -> None:
    params, old = load(), stale["triplet-robust-0"]
    for group, name in (("schedule", "turns"), ("model", "options"), ("schedule", "crop_scale")):
        del old["settings"][group][name]
    assert carry.changed_settings(params, old) == []
    del old["settings"]["schedule"]["epochs"]
    assert carry.changed_settings(params, old) == ["schedule.epochs is None, not 6"]
    turning = load({"recipes.glyphs.schedule.turns": True})
    assert "schedule.turns is None, not True" in carry.changed_settings(turning, old)


def both_made(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], digests: str = "old") -> None:
    """Stand in for training by the code of a commit and by today's, which finds something else."""
    before = record("triplet", "robust", 0.9, 100) | {"weights": "here", "map_r": {}, "embedding": {}, "scores": {}}
    before["digests"] = {"training": digests, "evaluation": digests}
    monkeypatch.setattr(carry, "by_both", lambda asked, commit, changed: (before, before | changes))
    monkeypatch.setattr(carry, "commit_of", lambda revision: "abc1234")


def test_two_versions_are_compared_with_each_other_and_not_with_the_record(
    stale: dict[str, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    both_made(monkeypatch, {})
    lines = carry.carry("glyphs", "quick", ["triplet-robust-0"], "HEAD~2", {"suites.quick.queries": 60})
    assert sorted(lines) == sorted(f"{run}: carried over" for run in RUNS)
    assert on_disk(RUNS[1])["carried"] == ["triplet-robust-0 beside abc1234 with {suites.quick.queries: 60}"]
    assert on_disk(RUNS[1])["weights"] == f"weights of {RUNS[1]}"


@pytest.mark.parametrize("part", carry.COMPARED)
def test_nothing_is_carried_if_the_versions_differ(
    part: str, stale: dict[str, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    both_made(monkeypatch, {part: [{"gate": "other"}]})
    with pytest.raises(ValueError, match=f"triplet-robust-0 came out differently.*{part} differ"):
        carry.carry("glyphs", "quick", ["triplet-robust-0"], "HEAD")
    assert all(on_disk(run)["digests"]["training"] == "old" for run in RUNS)


def test_a_commit_must_hold_the_code_of_the_records(stale: dict[str, Record], monkeypatch: pytest.MonkeyPatch) -> None:
    both_made(monkeypatch, {}, digests="older")
    with pytest.raises(
        ValueError, match="the code of abc1234 is not what the record of triplet-robust-0 was made with"
    ):
        carry.carry("glyphs", "quick", ["triplet-robust-0"], "HEAD")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="git has no revision 'no-such-branch'"):
        carry.commit_of("no-such-branch")
    with pytest.raises(ValueError, match="changes need a revision"):
        carry.carry("glyphs", "quick", ["triplet-robust-0"], None, {"suites.quick.queries": 60})


def test_a_run_without_a_stale_record_is_named(stale: dict[str, Record]) -> None:
    with pytest.raises(ValueError, match="'triplet-best-0' is no stale record of glyphs under 'quick'; these are: "):
        carry.carry("glyphs", "quick", ["triplet-best-0"])
