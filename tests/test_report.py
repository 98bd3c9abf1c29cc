"""From run records to metrics.csv, factors, verdicts and the page."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dml.evaluation.statistics import ratio_interval, wilson
from dml.reporting import plots, report


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
        "gates": [{"gate": "g", "eps": 8 / 255, "measured": 0.0, "limit": 0.1, "passed": True}],
        "standing": {"0.031373": "10"},
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
    interval = ratio_interval(200, 400, 20, 400)
    assert tuple(found.loc[("triplet", "robust"), ["factor_low", "factor_high"]]) == pytest.approx(interval)
    assert pd.isna(found.loc[("triplet", "standard"), "factor"])
    assert found.loc[("contrastive", "robust"), "factor"] == math.inf, "nothing stood: only a bound can be given"
    assert report.factor_text(found.loc[("contrastive", "robust")]) == "at least 25.9"
    assert list(found.index[:3]) == [("contrastive", d) for d in ("standard", "robust", "single_step")]


@pytest.mark.parametrize(
    ("standard", "robust", "measured", "verdict"),
    [
        (0, 200, "triplet at least 52.3", "holds"),
        (0, 12, "triplet at least 2.9", "not shown"),
        (20, 200, "triplet 10.0 (6.5 to 15.5)", "holds"),
        (20, 120, "triplet 6.0 (3.8 to 9.4)", "not shown"),
        (20, 40, "triplet 2.0 (1.2 to 3.3)", "fails"),
    ],
)
def test_a_factor_is_judged_by_its_interval(standard: int, robust: int, measured: str, verdict: str) -> None:
    both = [record("triplet", "standard", 0.9, standard), record("triplet", "robust", 0.9, robust)]
    judged = report.verdicts(report.comparison(report.metrics(both), both, 8 / 255), 8 / 255)[1]
    assert "5 times" in judged.claim
    assert (judged.measured, judged.verdict) == (measured, verdict)


def test_verdicts_say_what_fails(records: list[dict]) -> None:
    found = report.comparison(report.metrics(records), records, 8 / 255)
    judged = {row.claim.split()[0] + row.claim.split()[2]: row for row in report.verdicts(found, 8 / 255)}
    fails, gives, keeps, beats = judged.values()
    assert fails.verdict == "holds"
    assert gives.verdict == "holds"
    assert "triplet 10.0 (6.5 to 15.5)" in gives.measured
    assert "contrastive at least 25.9" in gives.measured
    assert keeps.verdict == "holds in part", "contrastive keeps 0.889 only"
    assert "contrastive 0.889; triplet 0.978" in keeps.measured
    assert beats.verdict == "not separated", "0.250 against 0.245 is within the intervals"
    records[4]["rows"][1]["r1"] = 0.1
    found = report.comparison(report.metrics(records), records, 8 / 255)
    assert report.verdicts(found, 8 / 255)[3].verdict == "fails"


@pytest.mark.parametrize(
    ("left", "verdict"), [(0.0, "holds"), (0.245, "not separated"), (0.25, "fails"), (0.7, "fails")]
)
def test_robust_models_are_judged_beside_what_nobody_trained(records: list[dict], left: float, verdict: str) -> None:
    untrained = {"r1": 0.8, "map_r": 0.2, "queries": 400, "left": {"8/255": left}}
    found = report.comparison(report.metrics(records), records, 8 / 255)
    last = report.verdicts(found, 8 / 255, untrained)[-1]
    assert last.claim == "Robust models keep more than a soft histogram that nobody trained at eps 8/255"
    assert (last.measured, last.verdict) == (
        f"contrastive 0.250 against {left:.3f}; triplet 0.500 against {left:.3f}",
        verdict,
    )
    assert len(report.verdicts(found, 8 / 255, untrained | {"left": {}})) == len(report.verdicts(found, 8 / 255))


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
    assert "| triplet | robust | 0.880 | 0.550 | **0.500** (0.451 to 0.549) | 0.100 | 10.0 (6.5 to 15.5) |" in text


def test_figures_are_the_same_bytes_each_time(records: list[dict], tmp_path: Path) -> None:
    table = report.metrics(records)
    for place in ("a", "b"):
        plots.theme()
        plots.save(plots.headline(table, [("natural", 0.0), ("attacked", 8 / 255)]), tmp_path / place, "headline")
        points = pd.DataFrame({"eps": [0.0, 0.1], "r1": [0.9, 0.1], "r1_low": [0.8, 0.0], "r1_high": [1.0, 0.2]})
        curves = [plots.Curve("triplet", "standard", points), plots.Curve("triplet", "robust", points, failed=True)]
        figure = plots.accuracy_by_eps(curves, mark=(0.01,))
        assert [text.get_text() for text in figure.legends[0].texts] == ["standard", "robust"]
        assert [text.get_text() for text in figure.axes[0].texts] == ["†"]
        plots.save(figure, tmp_path / place, "by_eps")
    for name in ("headline.png", "headline.svg", "by_eps.png", "by_eps.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_defence_without_a_colour_gets_one_of_its_own() -> None:
    names = ["standard", "robust", "single_step", "act", "est"]
    assert len({plots.color(name, names) for name in names}) == len(names)
    assert len({plots.marker(name, names) for name in names}) == len(names)
    assert plots.order(["robust", "act", "standard"]) == ["standard", "act", "robust"]


def test_gates_mark_a_model_everywhere(records: list[dict[str, Any]]) -> None:
    def gates(passed: bool) -> list[dict[str, Any]]:
        noise = {"gate": "fall to random noise", "eps": 8 / 255, "measured": 0.2, "limit": 0.05, "passed": passed}
        return [noise, {"gate": "R@1 left at eps 0.5", "eps": 0.5, "measured": 0.0, "limit": 0.0, "passed": True}]

    for record_ in records:
        record_["gates"] = gates(record_["defense"] != "robust")
    table = report.metrics(records)
    assert set(table.loc[table["defense"] == "robust", "gates"]) == {"fail"}
    assert set(table.loc[table["defense"] == "standard", "gates"]) == {"hold"}
    text = report.page(table, records, (8 / 255,), {}, {})
    assert "| triplet | robust | 0.880 | 0.550 | **0.500**† (0.451 to 0.549)" in text
    assert "| triplet | single step | 0.890 | 0.550 | **0.200** (" in text
    assert "| None is judged | gates do not hold, or were not run: contrastive, robust; triplet, robust |" in text
    bold = "| triplet, robust† | 8/255 | 1 of 2 | **0.200** (0.050) | 0.000 (0.000) |"
    assert bold in text, "what does not hold is bold"
    assert "| triplet, standard | 8/255 | 1 of 2 | 0.200 (0.050) | 0.000 (0.000) |" in text
    plots.theme()
    figure = plots.headline(table, [("attacked", 8 / 255)])
    assert [text.get_text() for text in figure.axes[0].texts].count("0.50†") == 1


def test_what_nobody_trained_is_a_line_across_the_bars(records: list[dict[str, Any]]) -> None:
    plots.theme()
    panels = [("natural", 0.0), ("attacked", 8 / 255), ("attacked", 0.01)]
    figure = plots.headline(report.metrics(records), panels, {"r1": 0.8, "left": {"8/255": 0.25}})
    drawn = [[line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] for axes in figure.axes]
    assert drawn == [[0.8], [0.25], []]
    assert "soft histogram, untrained" in [text.get_text() for text in figure.legends[0].texts]


def test_sections_of_what_suites_measured(records: list[dict[str, Any]]) -> None:
    attacks = [{"attack": name, "queries": 2, "r1": r1} for name, r1 in (("none", 1.0), ("noise", 0.5), ("worst", 0.5))]
    for place, record_ in enumerate(records[:3]):
        record_ |= {
            "gates": [{"gate": "g", "eps": 8 / 255, "measured": 0.0, "limit": 0.1, "passed": True}],
            "standing": {"0.031373": ("1111", "1101", "0000")[place]},
            "compared": {"eps": 8 / 255, "steps_each": 20, "attacks": attacks, "steps": []},
        }
    records.append(
        record("triplet", "robust", 0.9, 1, suite="ranking")
        | {
            "scores": {"CA+": 1.25, "TMA": 0.5, "ERS": 33.3},
            "embedding": {"effective_rank": 4.5, "ratio": 0.25},
            "gates": [],
        }
    )
    spread = {"effective_rank": 12.25, "top_share": 0.2, "intra": 0.5, "inter": 1.25, "ratio": 0.4}
    records[1] |= {"weights": "abc", "embedding": spread}
    records.append(record("triplet", "robust", 0.9, 1, suite="auto") | {"weights": "abc", "embedding": spread})
    text = report.page(report.metrics(records), records, (8 / 255,), {}, {})
    assert "| noise | 0.500 | 0.500 | 0.500 |" in text
    assert "| the whole suite `quick` | **1.000** | **0.500** | **0.000** |" in text, "every other query was compared"
    assert "| triplet | robust | single step | 4 | 3 | 0 | 0.2500 |" in text
    assert text.count("| triplet, robust | 12.2 | 0.20 | 0.50 | 1.25 | 0.40 |") == 1, "one model"
    assert "| `ranking` | triplet | robust | 0 | 0.900 | 1.2 | 0.500 | 33.3 | 4.5 | 0.25 |" in text


def test_seeds_get_an_interval(records: list[dict[str, Any]]) -> None:
    several = [
        records[1] | {"seed": seed, "rows": record("triplet", "robust", 0.9, left)["rows"]}
        for seed, left in enumerate((160, 200, 240))
    ]
    lines = report.seeds_section(report.metrics(several), 8 / 255)
    assert lines[-1] == "| `quick` | triplet | robust | 3 | 0.500 (0.252 to 0.748) |"
    assert report.seeds_section(report.metrics(records), 8 / 255) == []


def test_trainings_of_several_seeds_are_pooled(records: list[dict[str, Any]]) -> None:
    """Natural figures are averaged, attacked queries counted together, paired tests too."""
    another = [
        record("triplet", "standard", 0.7, 60) | {"seed": 1, "standing": {"0.031373": "0010"}},
        record("triplet", "robust", 0.8, 100) | {"seed": 1, "standing": {"0.031373": "1110"}},
    ]
    for row, marks in zip(records[:2], ("0001", "1111"), strict=True):
        row["standing"] = {"0.031373": marks}
    several = [*records[:2], *another]
    found = report.comparison(report.metrics(several), several, 8 / 255).set_index("defense")
    assert found.loc["robust", "natural"] == pytest.approx(0.84)
    assert tuple(found.loc["robust", ["trainings", "queries", "r1"]]) == (2, 800, 0.375)
    assert found.loc["robust", "factor"] == pytest.approx(300 / 80)
    text = report.page(report.metrics(several), several, (8 / 255,), {}, {})
    assert "400 queries of 2 trainings" not in text
    assert "### Suite `quick`, eps 8/255, 800 queries of 2 trainings" in text
    assert "| triplet | standard | robust | 8 | 0 | 5 | 0.0625 |" in text
    assert "| triplet, robust, seed 1 | 8/255 | 3 of 4 | 0.000 (0.100) |" in text


def test_the_page_says_what_is_found_without_learning(records: list[dict[str, Any]]) -> None:
    records[2]["baselines"] = {"pixels": {"r1": 0.3, "map_r": 0.1}, "colour histogram": {"r1": 0.5, "map_r": 0.2}}
    soft = {"r1": 0.4, "map_r": 0.1, "queries": 300, "left": {"0.01": 0.25, "8/255": 0.0}}
    records[2]["baselines"]["soft histogram"] = soft
    text = report.page(report.metrics(records), records, (8 / 255,), {}, {})
    assert "nearest neighbour by: pixels 0.300 (MAP@R 0.100); colour histogram 0.500 (MAP@R 0.200); soft hist" in text
    assert "Attacks leave 0.250 at 0.01 and 0.000 at 8/255 of the soft histogram (300 queries)" in text


def test_suites_are_compared_on_trainings_that_all_of_them_attacked(records: list[dict[str, Any]]) -> None:
    easier = record("triplet", "standard", 0.9, 300, seed=1)
    harder = record("triplet", "standard", 0.9, 10, suite="thorough")
    lines = report.suites_side_by_side(report.metrics([records[0], easier, harder]), 8 / 255)
    assert lines[-1] == "| triplet | standard | 0.050 (0.033 to 0.076), 400 | 0.025 (0.014 to 0.045), 400 |"


def test_certified_radii_are_a_table(records: list[dict[str, Any]]) -> None:
    row = {"norm": "l2", "queries": 10, "r1_low": 0.1, "r1_high": 0.9, "map_r": 0.1}
    rows = [
        {**row, "attack": name, "eps": eps, "r1": r1}
        for name, eps, r1 in (("none", 0.0, 1.0), ("certified", 0.1, 0.4), ("certified", 0.2, 0.2), ("base", 0.1, 0.6))
    ]
    made = records[0] | {"suite": "certified", "rows": rows, "scores": {"sigma": 0.1, "alpha": 0.001}}
    table = report.metrics([made])
    lines = report.norms_section(table, [made, records[1]])
    assert any(
        "Noise of standard deviation 0.1; a certificate is wrong with a probability of 0.001" in x for x in lines
    )
    assert "| `certified` | triplet | standard | 0 | base | 0.600 | – |" in lines
    assert "| `certified` | triplet | standard | 0 | certified | 0.400 | 0.200 |" in lines
    plots.theme()
    assert plots.certified_curves(table).axes[0].get_xlabel().startswith("radius")


def test_a_suite_without_gates_judges_nothing(records: list[dict[str, Any]]) -> None:
    for record_ in records:
        record_["gates"] = []
    text = report.page(report.metrics(records), records, (8 / 255,), {}, {})
    assert "**0.500** (0.451" in text
    assert "verdict" not in text


def test_a_model_without_its_counterpart_changes_no_verdict(records: list[dict[str, Any]]) -> None:
    some = [row for row in records if (row["loss"], row["defense"]) != ("contrastive", "robust")]
    found = report.comparison(report.metrics(some), some, 8 / 255)
    keeps = next(row for row in report.verdicts(found, 8 / 255) if "keeps" in row.claim)
    assert (keeps.measured, keeps.verdict) == ("triplet 0.978", "holds")
