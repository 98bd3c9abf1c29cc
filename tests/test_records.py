"""Records: reading and writing them, and telling current ones from stale ones."""

import json
from pathlib import Path

import pandas as pd
import pytest
from made_records import EPS, record

from dml.common.files import ROOT
from dml.evaluation.outcomes import map_r_left
from dml.reporting import records
from dml.reporting.provenance import provenance


def test_a_record_and_its_machine_come_back_from_two_files(tmp_path: Path) -> None:
    made = record("triplet", "robust", 0.5, 1)
    file = tmp_path / "toys" / "triplet-robust-0" / "quick.json"
    records.write(file, made, made["machine"])
    assert "machine" not in json.loads(file.read_text()), "nothing may depend on where a record was made"
    assert json.loads(file.with_name("quick.machine.json").read_text()) == made["machine"]
    assert records.read(tmp_path) == [made]
    file.with_name("quick.machine.json").unlink()
    assert records.read(tmp_path) == [made | {"machine": {}}]


def test_records_of_a_later_folder_replace_an_earlier_ones(tmp_path: Path) -> None:
    for place, natural in (("first", 0.5), ("second", 0.7)):
        records.write(tmp_path / place / "toys" / "a.json", record("triplet", "robust", natural, 1), {"device": place})
    records.write(tmp_path / "first" / "toys" / "b.json", record("triplet", "standard", 0.6, 1), {})
    found = records.read(tmp_path / "first", tmp_path / "second", tmp_path / "none")
    assert [made["natural"]["r1"] for made in found] == [0.7, 0.6]
    assert found[0]["machine"] == {"device": "second"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"survival": {"0.03": "10"}}, r"survival\['0.03'\] must map"),
        ({"survival": {"0.031373": "1x"}}, "must map"),
        ({"map_r": {"0.031373": "0.5000"}}, r"map_r\['0.031373'\] must hold one share of four decimals for each query"),
        ({"map_r": {"0.031373": "1.5000 " * 400}}, "must hold one share"),
        ({"map_r": {"0.01": "0.5000"}}, r"map_r\['0.01'\] must hold"),
        ({"rows": [{"attack": "none"}]}, r"lacks the key 'rows\[0\].norm'"),
        ({"gates": [{"gate": "g"}]}, r"lacks the key 'gates\[0\].eps'"),
        ({"digests": {"training": "a"}}, "lacks the key 'digests.evaluation'"),
        ({"natural": {"r1": 1.0, "map_r": 1.0}}, "lacks the key 'natural.queries'"),
        ({"natural": 0.5}, "natural is float; it must hold keys and values"),
        ({"rows": None}, "rows is NoneType; it must be a list"),
        ({"gates": 3}, "gates is int; it must be a list"),
        ({"survival": None}, "survival is NoneType; it must hold keys and values"),
    ],
)
def test_a_broken_record_is_refused_by_its_key(tmp_path: Path, change: dict, message: str) -> None:
    broken = record("triplet", "robust", 0.5, 1) | change
    with pytest.raises(ValueError, match=message):
        records.write(tmp_path / "a.json", broken, {})
    assert not list(tmp_path.iterdir()), "nothing is written"
    (tmp_path / "a.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match=rf"a\.json is not a record: .*{message}"):
        records.read(tmp_path)


def test_files_that_are_no_records_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json is not a record: it lacks the key 'dataset'"):
        records.read(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json is not valid JSON"):
        records.read(tmp_path)


def test_a_damaged_file_of_the_machine_is_named(tmp_path: Path) -> None:
    records.write(tmp_path / "a.json", record("triplet", "robust", 0.5, 1), {})
    (tmp_path / "a.machine.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.machine\.json is not valid JSON"):
        records.read(tmp_path)


def test_the_same_run_in_two_files_would_count_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        records.write(tmp_path / f"{name}.json", record("triplet", "robust", 0.5, 1), {})
    with pytest.raises(ValueError, match=r"b\.json and .*a\.json hold the same run"):
        records.read(tmp_path)


@pytest.mark.parametrize(
    ("digests", "wanted", "reason"),
    [
        ({"training": "a", "evaluation": "b"}, {"training": "a", "evaluation": "b"}, ""),
        ({"training": "x", "evaluation": "b"}, {"training": "a", "evaluation": "b"}, "trained with other"),
        ({"training": "a", "evaluation": "x"}, {"training": "a", "evaluation": "b"}, "evaluated with other"),
        ({"training": "x", "evaluation": "x"}, {"training": "a", "evaluation": "b"}, "trained and evaluated with"),
        ({"training": "a", "evaluation": "b"}, None, "params.yaml has no such run"),
    ],
)
def test_a_record_is_current_if_both_digests_are_the_expected_ones(
    digests: dict[str, str], wanted: dict[str, str] | None, reason: str
) -> None:
    made = record("triplet", "robust", 0.5, 1, seed=3, digests=digests)
    current, stale = records.split_stale([made], {("toys", "triplet", "robust", "quick"): wanted})
    assert current == ([] if reason else [made])
    assert [found.record for found in stale] == ([made] if reason else [])
    assert all(found.reason.startswith(reason) for found in stale)


def test_records_from_before_digests_were_kept_are_stale(tmp_path: Path) -> None:
    old = record("triplet", "robust", 0.5, 1)
    for key in ("digests", "survival", "claims", "alone", "machine"):
        del old[key]
    (tmp_path / "old.json").write_text(json.dumps(old))
    key = ("toys", "triplet", "robust", "quick")
    current, stale = records.split_stale(
        records.read(tmp_path), {key: {"training": "triplet robust", "evaluation": "quick"}}
    )
    assert current == []
    assert [found.reason for found in stale] == ["recorded without digests of its settings and code"]


def test_committed_records_can_be_read() -> None:
    found = records.read(ROOT / "results" / "runs")
    assert found
    assert {made["dataset"] for made in found} >= {"glyphs"}


def test_provenance_tells_how_each_run_was_made() -> None:
    told = provenance([record("triplet", "robust", 0.5, 1, weights="abc")])
    assert set(told) == {"versions", "runs"}, "the commit is not told: the figures are made before they are committed"
    assert {"python", "torch", "dvc"} <= set(told["versions"])
    (run,) = told["runs"]
    assert (run["loss"], run["weights"], run["device"]) == ("triplet", "abc", "CPU")
    assert run["seconds"] == {"training": 60.0, "suite": 2.0}


def outcomes(*, attacked: bool = True) -> pd.DataFrame:
    """What a suite finds of three queries at two radii, in its own order, as the engine gives it in two chunks."""
    rows = []
    for chunk in ([7, 2], [5]):
        for eps in (0.01, EPS):
            for name in ("map", "worst") if attacked else ("worst",):
                for query in chunk:
                    survives = int(query != 2 or eps < EPS)
                    rows.append((query, name, eps, survives, 0.1 * query + eps / 1000 if name == "map" else 0.0))
    return pd.DataFrame(rows, columns=["query", "attack", "eps", "r1", "map_r"])


def test_a_record_holds_the_map_r_that_is_left_of_each_query(tmp_path: Path) -> None:
    assert map_r_left(outcomes(attacked=False), records.LOWERED) == {}, "a suite that does not attack MAP@R"
    left = map_r_left(outcomes(), records.LOWERED)
    assert left == dict.fromkeys(("0.010000", "0.031373"), "0.7000 0.2000 0.5000")
    made = record("triplet", "robust", 0.5, 1, survival={"0.010000": "111", "0.031373": "101"}, map_r=left)
    records.write(tmp_path / "a.json", made, made["machine"])
    assert records.read(tmp_path) == [made]
