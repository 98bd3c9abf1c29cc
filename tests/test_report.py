"""From run records to metrics.csv, factors, verdicts and the page."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dml import plots, report
from dml.statistics import wilson


def record(loss: str, defense: str, natural: float, left: int, suite: str = "quick", **changes: Any) -> dict[str, Any]:
    low, high = wilson(left, 400)
    rows = [
        {
            "attack": "none",
            "norm": "linf",
            "eps": 0.0,
            "queries": 400,
            "r1": natural,
            "r1_low": natural - 0.02,
            "r1_high": natural + 0.02,
            "map_r": 0.5,
        },
        {
            "attack": "worst",
            "norm": "linf",
            "eps": 8 / 255,
            "queries": 400,
            "r1": left / 400,
            "r1_low": low,
            "r1_high": high,
            "map_r": 0.1,
        },
    ]
    return {
        "dataset": "toys",
        "loss": loss,
        "defense": defense,
        "seed": 0,
        "suite": suite,
        "natural": {"r1": natural, "map_r": 0.55},
        "rows": rows,
        "device": "CPU",
        "seconds": {"training": 1.0, "attack": 2.0},
    } | changes


@pytest.fixture
def records() -> list[dict[str, Any]]:
    return [
        record("triplet", "standard", 0.9, 20),
        record("triplet", "robust", 0.88, 200),
        record("triplet", "single_step", 0.89, 80),
        record("contrastive", "standard", 0.9, 0),
        record("contrastive", "robust", 0.8, 100),
        record("contrastive", "single_step", 0.89, 98),
    ]


def test_records_of_a_later_folder_stand_for_the_earlier(tmp_path: Path) -> None:
    for place, natural in (("first", 0.5), ("second", 0.7)):
        report.write_record(tmp_path / place / "toys" / "a.json", record("triplet", "robust", natural, 1))
    report.write_record(tmp_path / "first" / "toys" / "b.json", record("triplet", "standard", 0.6, 1))
    found = report.read_records(tmp_path / "first", tmp_path / "second", tmp_path / "none")
    assert [row["natural"]["r1"] for row in found] == [0.7, 0.6]
    (tmp_path / "first" / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json lacks the key 'dataset'"):
        report.read_records(tmp_path / "first")
    (tmp_path / "first" / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json is no JSON"):
        report.read_records(tmp_path / "first")


def test_metrics_have_the_columns_and_order_that_they_promise(records: list[dict], tmp_path: Path) -> None:
    table = report.metrics(records)
    expected = "dataset,loss,defense,seed,suite,attack,norm,eps,queries,r1,r1_low,r1_high,map_r,gates"
    report.write_metrics(table, tmp_path / "a.csv")
    report.write_metrics(report.metrics(records[::-1]), tmp_path / "b.csv")
    text = (tmp_path / "a.csv").read_text()
    assert text.splitlines()[0] == expected
    assert text == (tmp_path / "b.csv").read_text(), "the order of the records does not matter"
    assert len(table) == 12
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv"), table, atol=1e-6)


def test_factors_are_over_the_undefended_model_of_the_same_loss(records: list[dict]) -> None:
    found = report.comparison(report.metrics(records), records, 8 / 255).set_index(["loss", "defense"])
    assert found.loc[("triplet", "robust"), "factor"] == pytest.approx(0.5 / 0.05)
    assert not found.loc[("triplet", "robust"), "bound"]
    assert pd.isna(found.loc[("triplet", "standard"), "factor"])
    assert found.loc[("contrastive", "robust"), "bound"], "nothing stood: only a bound can be given"
    assert found.loc[("contrastive", "robust"), "factor"] == pytest.approx(wilson(100, 400)[0] / wilson(0, 400)[1])
    assert list(found.index[:3]) == [("contrastive", d) for d in ("standard", "robust", "single_step")]


def test_verdicts_say_what_fails(records: list[dict]) -> None:
    found = report.comparison(report.metrics(records), records, 8 / 255)
    judged = {row.claim.split()[0] + row.claim.split()[2]: row for row in report.verdicts(found, 8 / 255)}
    fails, gives, keeps, beats = judged.values()
    assert fails.verdict == "holds"
    assert gives.verdict == "holds"
    assert "triplet 10.0 (0.500)" in gives.measured
    assert "contrastive at least 22.1 (0.250)" in gives.measured
    assert keeps.verdict == "holds in part", "contrastive keeps 0.889 only"
    assert "contrastive 0.889; triplet 0.978" in keeps.measured
    assert beats.verdict == "not separated", "0.250 against 0.245 is within the intervals"
    records[4]["rows"][1]["r1"] = 0.1
    found = report.comparison(report.metrics(records), records, 8 / 255)
    assert report.verdicts(found, 8 / 255)[3].verdict == "fails"


def test_the_page_shows_each_table_and_figure(records: list[dict]) -> None:
    thorough = [record("triplet", "standard", 0.9, 10, suite="thorough")]
    everything = records + thorough
    text = report.page(
        report.metrics(everything),
        everything,
        (8 / 255, 0.01),
        {"toys": "Drawn here."},
        {"toys": [("figures/toys/headline.png", "The headline.")]},
    )
    assert "## toys\n\nDrawn here. Measured on: CPU." in text
    assert "![The headline.](figures/toys/headline.png)" in text
    assert "### Suite `quick`, eps 8/255, 400 queries" in text
    assert "### Suite `thorough`, eps 8/255, 400 queries" in text
    assert "Suites side by side, eps 8/255" in text
    assert "| triplet | standard | 0.050 (0.033 to 0.076), 400 | 0.025 (0.014 to 0.045), 400 |" in text
    assert "eps 0.01" not in text, "no table for a radius that was not attacked"
    assert "| triplet | robust | 0.880 | 0.550 | **0.500** (0.451 to 0.549) | 0.100 | 10.0 |" in text


def test_figures_are_the_same_bytes_each_time(records: list[dict], tmp_path: Path) -> None:
    table = report.metrics(records)
    for place in ("a", "b"):
        plots.theme()
        plots.save(plots.headline(table, [("natural", 0.0), ("attacked", 8 / 255)]), tmp_path / place, "headline")
        plots.save(plots.accuracy_by_eps(table, mark=(0.01,)), tmp_path / place, "by_eps")
    for name in ("headline.png", "headline.svg", "by_eps.png", "by_eps.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_defence_without_a_colour_gets_one_of_its_own() -> None:
    names = ["standard", "robust", "single_step", "act", "est"]
    assert len({plots.color(name, names) for name in names}) == len(names)
    assert len({plots.marker(name, names) for name in names}) == len(names)
    assert plots.order(["robust", "act", "standard"]) == ["standard", "act", "robust"]
