"""From records to metrics.csv, factors, the leaderboard, and sections of pages."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_records import EPS, FIGURES, GATE, record, row, six

from dml.attacks.balls import radius_text
from dml.common.files import ROOT
from dml.config.load import load
from dml.evaluation.statistics import ratio_interval, wilson
from dml.reporting import compared, kinds, made, pages, records, sections, spelling, tables, trust


def test_metrics_have_the_columns_and_order_that_they_promise(tmp_path: Path) -> None:
    table = tables.metrics(six())
    tables.write_metrics(table, tmp_path / "a.csv")
    tables.write_metrics(tables.metrics(six()[::-1]), tmp_path / "b.csv")
    text = (tmp_path / "a.csv").read_text()
    expected = "dataset,loss,defense,seed,suite,attack,norm,eps,queries,r1,r1_low,r1_high,map_r,gates,collapsed"
    assert text.splitlines()[0] == expected
    assert text == (tmp_path / "b.csv").read_text(), "the order of the records does not matter"
    assert len(table) == 12
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv"), table, atol=1e-6)


def test_a_certificate_has_no_map(tmp_path: Path) -> None:
    runs = six()
    runs[0]["rows"][0] |= {"attack": "certified", "map_r": None}
    table = tables.metrics(runs[:1])
    tables.write_metrics(table, tmp_path / "a.csv")
    written = pd.read_csv(tmp_path / "a.csv")
    assert written.set_index("attack")["map_r"].isna().sum() == 1
    assert written.set_index("attack")["map_r"].isna()["certified"]


def current() -> list[records.Record]:
    """The records in git that the tables show."""
    keys = set(pd.read_csv(ROOT / "results" / "metrics.csv")[list(records.KEYS)].itertuples(index=False, name=None))
    runs = records.read(ROOT / "results" / "runs")
    return [run for run in runs if tuple(run[key] for key in records.KEYS) in keys]


def test_every_column_is_described() -> None:
    assert list(compared.METRICS) == list(tables.metrics(six()))
    assert list(compared.COMPARED) == list(compared.compared({"glyphs": six()}, FIGURES))


def test_compared_csv_has_what_the_pages_show_at_both_radii() -> None:
    runs = [record("triplet", "standard", 0.9, 20), record("triplet", "robust", 0.88, 200)]
    for item in runs:
        item["rows"].append(row("worst", 0.01, 250))
    runs[1]["settings"] = {"defense": {"name": "robust", "defense": "nearest"}}
    found = compared.compared({"glyphs": runs}, FIGURES)
    assert found["radius"].tolist() == ["8/255"] * 2 + ["0.01"] * 2
    assert found["kind"].tolist() == ["standard", "nearest"] * 2
    for eps in (EPS, 0.01):
        shown = tables.comparison(runs, eps, FIGURES)
        rows = found.loc[found["radius"] == radius_text(eps), list(shown)].reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, shown, check_dtype=False)


def test_compared_csv_and_its_columns_in_git_are_what_the_records_give(tmp_path: Path) -> None:
    params, runs = load(), current()
    by_dataset = {name: [run for run in runs if run["dataset"] == name] for name in params.recipes}  # as the pages
    figures = params.figures
    tables.write_metrics(compared.compared(by_dataset, figures), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == (ROOT / "results" / "compared.csv").read_bytes()
    assert compared.columns_page(figures) == (ROOT / "results" / "columns.md").read_text(encoding="utf-8")


def test_metrics_csv_in_git_is_what_its_records_give(tmp_path: Path) -> None:
    tables.write_metrics(tables.metrics(current()), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == (ROOT / "results" / "metrics.csv").read_bytes()


def test_factors_are_relative_to_the_baseline_of_the_same_loss() -> None:
    found = tables.comparison(six(), EPS, FIGURES).set_index(["loss", "defense"])
    assert found.loc[("triplet", "robust"), "factor"] == pytest.approx(0.5 / 0.05)
    interval = ratio_interval(200, 400, 20, 400)
    assert tuple(found.loc[("triplet", "robust"), ["factor_low", "factor_high"]]) == pytest.approx(interval)
    assert pd.isna(found.loc[("triplet", "standard"), "factor"])
    infinite = found.loc[("contrastive", "robust")]
    assert infinite["factor"] == math.inf, "no query survived: only a bound can be given"
    assert spelling.factor_text(*infinite[["factor", "factor_low", "factor_high"]]) == "at least 25.9"
    assert list(found.index[:3]) == [("contrastive", d) for d in ("standard", "robust", "single_step")]
    assert tuple(found.loc[("triplet", "robust"), ["natural_low", "natural_high"]]) == pytest.approx(wilson(880, 1000))


def test_a_factor_is_over_the_seeds_that_a_model_and_its_baseline_share() -> None:
    runs = [record("triplet", "standard", 0.9, survive, seed=seed) for seed, survive in enumerate((40, 10, 10))]
    runs += [record("triplet", "robust", 0.9, 200), record("triplet", "act", 0.9, 200, seed=7)]
    found = tables.comparison(runs, EPS, FIGURES).set_index("defense")
    assert found.loc["standard", "r1"] == 60 / 1200
    assert found.loc["robust", "factor"] == 5, "200 of 400 by 40 of 400"
    assert found.loc["robust", ["factor_low", "factor_high"]].tolist() == list(ratio_interval(200, 400, 40, 400))
    assert np.isnan(found.loc["act", "factor"]), "no seed in common"


def test_no_defence_is_special_but_by_the_names_in_figures() -> None:
    renamed = [made | {"defense": {"standard": "plain"}.get(made["defense"], made["defense"])} for made in six()]
    for made_ in renamed:
        made_["digests"] = {"training": made_["defense"], "evaluation": "quick"}
    other = type(FIGURES)(**vars(FIGURES) | {"baseline": "plain", "paper": "single_step", "peer": "robust"})
    found = tables.comparison(renamed, EPS, other).set_index(["loss", "defense"])
    assert found.loc[("triplet", "robust"), "factor"] == pytest.approx(10)
    assert list(found.index[:3]) == [("contrastive", d) for d in ("plain", "single_step", "robust")]
    assert tables.comparison(renamed, EPS, FIGURES)["factor"].isna().all(), "there is no baseline of that name"


def test_controls_stand_last_and_have_no_factor() -> None:
    control = record("none", "pixels_8", 0.4, 60)
    found = tables.comparison([control, *six()], EPS, FIGURES)
    last = found.iloc[-1]
    assert (last["loss"], last["defense"], last["r1"]) == ("none", "pixels_8", 0.15)
    assert math.isnan(last["factor"])
    assert tables.best_control(found)["defense"] == "pixels_8"
    assert tables.best_control(found.iloc[:-1]) is None
    better = record("none", "soft_histogram", 0.1, 61)
    assert tables.best_control(tables.comparison([control, better], EPS, FIGURES))["defense"] == "soft_histogram"


def test_trainings_of_several_seeds_are_pooled() -> None:
    several = [record("triplet", "robust", 0.88, 200), record("triplet", "robust", 0.8, 100, seed=1)]
    several += [record("triplet", "standard", 0.9, 20), record("triplet", "standard", 0.7, 60, seed=1)]
    found = tables.comparison(several, EPS, FIGURES).set_index("defense")
    assert found.loc["robust", "natural"] == pytest.approx(0.84)
    assert tuple(found.loc["robust", ["trainings", "queries", "r1"]]) == (2, 800, 0.375)
    assert found.loc["robust", "factor"] == pytest.approx(300 / 80)
    assert sections.queries_text(found) == "800 queries of 2 trainings"
    assert sections.queries_text(found.assign(queries=[800, 400], trainings=[2, 1])) == (
        "400 to 800 queries of 1 to 2 trainings"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"seed": 1, "digests": {"training": "x", "evaluation": "quick"}},
            "seeds of triplet, robust were",
        ),
        ({"seed": 1, "digests": {"training": "triplet robust", "evaluation": "x"}}, "evaluation digests quick, x are"),
        ({"suite": "auto"}, "suites auto, quick are mixed"),
        ({"dataset": "others"}, "datasets others, toys are mixed"),
    ],
)
def test_what_was_measured_differently_is_never_compared(change: dict[str, Any], message: str) -> None:
    mixed = [record("triplet", "robust", 0.8, 1), record("triplet", "robust", 0.8, 1) | change]
    for compare in (lambda: tables.pool(mixed), lambda: tables.comparison(mixed, EPS, FIGURES)):
        with pytest.raises(ValueError, match=message):
            compare()
    if change.get("seed"):
        with pytest.raises(ValueError, match=message):
            trust.seeds_section(mixed, EPS, FIGURES)


def test_the_headline_shows_the_suite_that_attacked_most_queries() -> None:
    """One model under a long suite does not hide all others; among equals the chosen suite is shown."""
    quick, auto = record("triplet", "robust", 0.8, 1), record("triplet", "robust", 0.8, 1, "auto", queries=500)
    wide = record("triplet", "robust", 0.8, 1, "wide", queries=2000, claims=False)
    other = record("triplet", "standard", 0.8, 1)
    assert tables.main_suite([auto, quick, other, wide], FIGURES) == "quick"
    assert tables.main_suite([auto, quick, wide], FIGURES) == "auto"
    for name in ("a", "z"):
        assert tables.main_suite([record("triplet", "robust", 0.8, 1, name), quick], FIGURES) == "quick"
    assert tables.main_suite([wide], FIGURES) is None, "no claim rests on it"


def test_the_leaderboard_ranks_each_defence_by_its_best_loss_beside_the_best_controls() -> None:
    small = {"rows": [row("none", 0.0, 160), row("worst", 0.01, 120), row("worst", EPS, 10)]}
    large = {"rows": [row("none", 0.0, 160), row("worst", 0.01, 100), row("worst", EPS, 90)]}
    controls = [
        record("none", "pixels_8", 0.4, 10) | small,
        record("none", "pixels_16", 0.4, 90) | large,
        record("none", "histogram", 0.1, 0),
    ]
    board = tables.leaderboard([*six(), *controls], FIGURES)
    assert list(zip(board["loss"], board["defense"], strict=True)) == [
        ("triplet", "robust"),
        ("contrastive", "single_step"),
        ("none", "pixels_16"),
        ("triplet", "standard"),
        ("none", "pixels_8"),
    ]
    assert board["r1_paper"].tolist()[2::2] == [0.25, 0.3]
    assert math.isnan(board["r1_paper"][0])
    lines = sections.leaderboard_table(board, FIGURES)
    assert lines[3] == "| robust | triplet | 0.880 | – | **0.500** (0.451 to 0.549) | 10.0 (6.5 to 15.5) | 5.0 |"
    assert "MAP@R" not in lines[1], "no attack was on it"
    assert "| pixels 16 | untrained | 0.400 | 0.250 | **0.225** (" in lines[5]


def test_a_failed_gate_is_marked_at_every_radius_and_trainings_are_told_where_they_differ() -> None:
    both = [row("none", 0.0, 360), row("worst", 0.01, 240), row("worst", EPS, 200)]
    failed = {"rows": both, "gates": [GATE | {"passed": False}]}
    runs = [record("triplet", "robust", 0.9, 200) | failed, record("triplet", "standard", 0.9, 20)]
    assert "| 0.600† | **0.500**† (" in sections.leaderboard_table(tables.leaderboard(runs, FIGURES), FIGURES)[3]
    found = sections.finding(tables.comparison(runs, EPS, FIGURES), EPS, FIGURES)
    assert found.startswith("At eps 8/255, R@1 is 0.500† (0.451 to 0.549) for `robust`, triplet loss; 0.050 for ")
    doubtful = [runs[0], runs[1] | {"gates": failed["gates"]}]
    assert "; 0.050† for `standard`" in sections.finding(tables.comparison(doubtful, EPS, FIGURES), EPS, FIGURES)
    runs.append(record("triplet", "standard", 0.9, 30, seed=1))
    lines = sections.leaderboard_table(tables.leaderboard(runs, FIGURES), FIGURES)
    assert lines[1].startswith("| defence | loss (trainings) | natural R@1 |")
    assert [line.split(" | ")[1] for line in lines[3:]] == ["triplet (1)", "triplet (2)"]


def test_adversarial_map_is_what_an_attack_on_it_leaves() -> None:
    runs = six()
    for run in runs:
        run["rows"].append(row("map", EPS, 100, map_r=0.05))
    found = tables.comparison(runs, EPS, FIGURES)
    assert found["adversarial_map_r"].tolist() == [0.05] * 6, "and not the MAP@R of the images that lower R@1"
    assert sections.comparison_table(found)[1].count("MAP@R") == 2
    board = tables.leaderboard(runs, FIGURES)
    assert "| MAP@R at 8/255 |" in sections.leaderboard_table(board, FIGURES)[1]


def test_no_table_has_more_than_eight_columns() -> None:
    with pytest.raises(ValueError, match="a table has 9 columns; it must have at most 8"):
        spelling.table([""] * 9, [])
    lines = spelling.wide_table(["gate", "eps"], list("abcdefgh"), [(["g", "0"], list("12345678"))])
    parts = [line for line in lines if line.startswith("| g ")]
    assert parts == ["| g | 0 | 1 | 2 | 3 | 4 | 5 | 6 |", "| g | 0 | 7 | 8 |"]


def test_suites_are_compared_on_the_queries_that_both_attacked() -> None:
    quick = record("triplet", "standard", 0.9, 2, queries=4, survival={"0.031373": "1100"})
    auto = record("triplet", "standard", 0.9, 3, "auto", queries=8, survival={"0.031373": "10000011"})
    other = record("triplet", "standard", 0.9, 4, queries=4, seed=1, survival={"0.031373": "1111"})
    lines = trust.effort_section([quick, auto, other], EPS, FIGURES)
    shown = "| triplet, standard | 4 | 0.250 (0.046 to 0.699) | 0.500 ("
    assert lines[-1].startswith(shown), "the first four of seed 0"
    weak = record("triplet", "standard", 0.9, 4, "paper", claims=False, survival={"0.031373": "1111"})
    assert trust.effort_section([quick, weak], EPS, FIGURES) == [], "no claim rests on it"
    again = [quick | {"weights": "a"}, auto | {"weights": "b"}]
    assert trust.effort_section(again, EPS, FIGURES) == [], "the model was trained again in between"


def test_defences_are_paired_on_the_same_queries() -> None:
    pairs = [("standard", "0001"), ("robust", "1111")]
    runs = [
        record("triplet", name, 0.9, 1, seed=seed, survival={"0.031373": marks})
        for seed in (0, 1)
        for name, marks in pairs
    ]
    runs.append(record("triplet", "robust", 0.9, 1, seed=2, survival={"0.031373": "0000"}))
    lines = trust.paired_section(runs, EPS, FIGURES)
    assert lines[-1] == "| triplet | standard | robust | 8 | 0 | 6 | 0.0312 |", "seed 2 has no partner"
    runs[1]["gates"] = [GATE | {"passed": False}]
    assert "| standard | robust† |" in trust.paired_section(runs, EPS, FIGURES)[-1]
    control = record("none", "pixels_8", 0.9, 1, survival={"0.031373": "0001"})
    assert trust.paired_section([runs[0], control], EPS, FIGURES) == []


def test_seeds_get_an_interval() -> None:
    several = [record("triplet", "robust", 0.88, left, seed=seed) for seed, left in enumerate((160, 200, 240))]
    lines = trust.seeds_section(several, EPS, FIGURES)
    assert lines[-1] == "| `quick` | triplet | robust | 3 | 0.500 (0.252 to 0.748) |"
    assert trust.seeds_section(six(), EPS, FIGURES) == []


def test_gates_show_what_was_measured_and_mark_what_fails() -> None:
    fool = [GATE | {"gate": f"broken by images that fool {name}", "measured": 0.02} for name in ("a-b-0", "c-d-1")]
    zero = {"gate": "images changed at eps 0", "eps": 0.0, "measured": 0.0, "limit": 0.0, "passed": True}
    one = record("triplet", "robust", 0.9, 200, gates=[zero, GATE, *fool])
    two = record("triplet", "standard", 0.9, 20, gates=[GATE | {"measured": 0.2, "passed": False}])
    lines = trust.gates_section([one, two], FIGURES)
    assert lines[1].startswith("Not every gate holds for triplet, standard†.")
    assert "| gate | eps | triplet, standard† | triplet, robust |" in lines
    assert "| queries that survive | 8/255 | 20 of 400 | 200 of 400 |" in lines
    assert "| images changed at eps 0 | 0 | – | 0.000 (0.000) |" in lines
    assert "| broken by random noise | 8/255 | **0.200** (0.100) | 0.000 (0.100) |" in lines
    assert "| broken by images that fool another model | 8/255 | – | 0.020 (0.100); 0.020 (0.100) |" in lines
    assert trust.gates_section([one], FIGURES)[1].startswith("All gates hold.")
    assert trust.gates_section([record("triplet", "robust", 0.9, 1, gates=[])], FIGURES) == []


def test_a_model_under_two_suites_is_one_row_of_the_collapse_table() -> None:
    runs = [record("triplet", "robust", 0.9, 1), record("triplet", "robust", 0.9, 1, "auto")]
    runs.append(record("none", "pixels_8", 0.9, 1))
    lines = trust.collapse_section(runs, FIGURES)
    assert [line for line in lines if "12.2" in line] == ["| triplet, robust | 12.2 | 0.20 | 0.50 | 1.25 | 0.40 | no |"]
    assert trust.collapse_section([record("triplet", "robust", 0.9, 1, embedding={})], FIGURES) == []


def test_attacks_one_at_a_time_stand_beside_the_main_suite_on_the_same_queries() -> None:
    def alone(defense: str, **left: int) -> dict[str, Any]:
        rows = [row("none", 0.0, 4, 4, map_r=0.5)]
        rows += [row(name, EPS, survive, 4, map_r=0.05 * survive) for name, survive in left.items()]
        marks = {"0.031373": "1" * left["worst"] + "0" * (4 - left["worst"])}
        return record("triplet", defense, 0.9, 0, "single", rows=rows, survival=marks, alone=True, claims=False)

    runs = [alone("standard", margin=1, fgsm=3, worst=1), alone("robust", margin=3, fgsm=3, worst=3)]
    runs.append(record("triplet", "robust", 0.9, 3, queries=8, survival={"0.031373": "11000001"}))
    lines = kinds.alone_section(runs, EPS, FIGURES)
    rows = lines[lines.index("| --- | --- | --- |") + 1 :]
    assert rows == [
        "| none (natural) | 1.000 | 1.000 |",
        "| fgsm | 0.750 | 0.750 |",
        "| margin | 0.250 | 0.750 |",
        "| all of these | 0.250 | 0.750 |",
        "| suite `quick` | – | **0.500** |",
        "| MAP@R, natural | 0.500 | 0.500 |",
        "| MAP@R, lowest after one attack | 0.050 | 0.150 |",
    ]
    assert kinds.alone_section(runs[2:], EPS, FIGURES) == []


def test_controls_with_a_certificate_are_given_as_a_range() -> None:
    rows = [row("none", 0.0, 160), row("certified", EPS, 40), row("worst", EPS, 48)]
    runs = [record("none", "pixels_8", 0.4, 48, rows=rows), record("none", "histogram", 0.1, 4), *six()]
    lines = sections.controls_section(runs, FIGURES)
    assert lines[-2:] == ["| histogram | 0.100 | 0.550 | 0.010 |", "| pixels 8 | 0.400 | 0.550 | 0.100 to 0.120 |"]
    assert sections.controls_section(six(), FIGURES) == []


def test_near_duplicates_that_count_stand_beside_those_left_out() -> None:
    settings = {"suite": {"kind": "with_groups"}}
    counted = record("triplet", "robust", 0.95, 240, "with_groups", claims=False, gates=[], settings=settings)
    fewer = record("triplet", "single_step", 0.9, 50, "with_groups", 100, claims=False, gates=[], settings=settings)
    next(item for item in counted["rows"] if item["attack"] == "none")["map_r"] = 0.75
    lines = kinds.groups_section([*six(), fewer, counted], FIGURES)
    assert lines[-3] == "| model | queries | natural R@1 | R@1 at 0.01 | R@1 at 8/255 | natural MAP@R |"
    shown = "| triplet, robust | 400 | 0.880 → 0.950 | – → – | 0.500 → 0.600 | 0.500 → 0.750 |"
    assert lines[-1] == shown, "of the same queries only"
    assert "trained again" not in lines[1]
    paper = {"attack": "map", "norm": "linf", "eps": FIGURES.paper_eps, "queries": 400, "map_r": 0.125}
    lower = counted | {"rows": [*counted["rows"], paper], "map_r": {}}
    named = kinds.groups_section([*six(), counted, lower | {"suite": "twins"}], FIGURES)[-2:]
    assert {line.split(" | ")[0].rpartition(", ")[2] for line in named} == {"`twins`", "`with_groups`"}
    lines = kinds.groups_section([*six(), lower], FIGURES)
    assert lines[-3].endswith("| R@1 at 8/255 | natural MAP@R | MAP@R at 0.01 |")
    assert lines[-1].endswith("| 0.500 → 0.750 | – → 0.125 |")
    lines = kinds.groups_section([*six(), counted | {"weights": "others"}], FIGURES)
    assert lines[-1].startswith("| triplet, robust* | 400 |")
    assert lines[1].endswith("and not to the same weights.")
    again = [{**run, "seed": 1} for run in (six()[1], counted)]
    lines = kinds.groups_section([*six(), *again, counted], FIGURES)
    assert [line.split(" | ")[0] for line in lines[-2:]] == ["| triplet, robust, seed 0", "| triplet, robust, seed 1"]
    assert kinds.groups_section(six(), FIGURES) == []
    page = pages.dataset_page("toys", [*six(), counted], [], FIGURES, "", [])
    assert "Where near duplicates count" in page
    assert "Suite <code>with_groups</code>" not in page, "its table would show natural scores of other searches"


def test_ranking_scores_are_rows() -> None:
    scores = {"CA+": 1.25, "CA-": 88.0, "TMA": 0.5, "ERS": 33.3, "ERS low": 30.0, "ERS high": 36.6}
    runs = [record("triplet", name, 0.9, 1, "ranking", scores=scores) for name in ("standard", "robust")]
    lines = kinds.ranking_section([*runs, *six()], FIGURES)
    assert "| score | triplet, standard | triplet, robust |" in lines
    assert lines[-8:-2] == [
        "| natural R@1 | 0.900 | 0.900 |",
        "| CA+ ↑ | 1.2 | 1.2 |",
        "| CA- ↓ | 88.0 | 88.0 |",
        "| TMA ↓ | 0.500 | 0.500 |",
        "| ERS ↑ | 33.3 | 33.3 |",
        "| ERS, 95% interval | 30.0 to 36.6 | 30.0 to 36.6 |",
    ]
    assert lines[-2:] == ["| effective rank | 12.2 | 12.2 |", "| distance of classes | 1.25 | 1.25 |"]


def test_certified_radii_are_a_table() -> None:
    rows = [
        row(name, eps, survive, 10, norm="l2")
        for name, eps, survive in (("none", 0.0, 10), ("certified", 0.1, 4), ("certified", 0.2, 2), ("base", 0.1, 6))
    ]
    scores = {"sigma": 0.1, "alpha": 0.001}
    run = record("triplet", "standard", 0.9, 0, "certified", rows=rows, scores=scores, survival={})
    lines = kinds.certified_section([run, *six()], FIGURES)
    assert "standard deviation 0.1; a certificate is wrong with probability 0.001" in lines[1]
    assert "| triplet, standard | base | 0.600 | – |" in lines
    assert "| triplet, standard | certified | 0.400 | 0.200 |" in lines
    assert sections.suite_section([run], FIGURES) == []


def test_a_suite_of_many_radii_gets_one_more_table() -> None:
    rows = [row("none", 0.0, 360), *(row("worst", k / 255, 400 - 40 * k) for k in (1, 2, 8))]
    lines = sections.suite_section([record("triplet", "robust", 0.9, 0, "radii", rows=rows)], FIGURES)
    assert lines[-1] == "| triplet, robust | 0.900 | 0.800 | 0.200 |"
    assert "| model | 1/255 | 2/255 | 8/255 |" in lines
    assert not any("| model |" in line for line in sections.suite_section(six(), FIGURES))
    failed = record("triplet", "robust", 0.9, 0, "radii", rows=rows, gates=[GATE | {"passed": False}])
    assert sections.suite_section([failed], FIGURES)[-1] == "| triplet, robust | 0.900† | 0.800† | 0.200† |"


def test_cost_is_in_images_relative_to_the_baseline_and_in_time_on_each_device() -> None:
    def ran(defense: str, seconds: float | None, device: str, seed: int = 0, loss: str = "triplet") -> dict[str, Any]:
        return record(loss, defense, 0.9, 1, seed=seed, machine={"device": device, "seconds": {"training": seconds}})

    runs = [ran("standard", 60, "A"), ran("robust", 300, "A"), ran("robust", 420, "A", 1), ran("act", 90, "B")]
    runs[1] |= {"epoch_kept": 12}
    runs[2] |= {"epoch_kept": 1}
    runs += [ran("est", None, "A"), ran("pixels_8", 5, "A", loss="none"), record("triplet", "x", 0.9, 1, machine={})]
    rows = made.cost_section(runs, FIGURES)[3:]
    assert rows == [
        "| triplet | standard | 1 | 1.0 | – | 60 s | A |",
        "| triplet | robust | 2 | 5.0 | 12, 1 | 6 min | A |",
        "| triplet | act | 1 | 5.0 | – | 2 min | B |",
    ]
    twins = ran("act", 600, "B") | {"suite": "a_suite", "settings": {"suite": {"kind": "with_groups"}}, "epoch_kept": 9}
    assert made.cost_section([*runs, twins], FIGURES)[3:] == rows, "trained again for near duplicates"


def test_settings_read_as_in_params_yaml() -> None:
    run = record("triplet", "robust", 0.9, 1)
    run["settings"] = {
        "model": {"backbone": "conv4", "whiten": False},
        "loss": {"miner": "easy", "margin": 0.2},
        "suite": {"eps": [0.01, EPS], "attacks": {"margin": {"steps": 40}, "fgsm": {}}},
    }
    lines = made.settings_section([run, record("none", "pixels_8", 0.9, 1, settings=run["settings"])])
    assert lines[3:] == [
        "| model | `{backbone: conv4, whiten: false}` |",
        "| loss `triplet` | `{miner: easy, margin: 0.2}` |",
        "| suite `quick` | `{eps: [0.01, 8/255], attacks: {margin: {steps: 40}, fgsm: {}}}` |",
    ]


def test_a_collapsed_embedding_does_not_pass_as_a_result() -> None:
    """Its gates may hold: nothing moves it. An untrained control may lie in one place and still rank well."""
    run = record("triplet", "robust", 0.9, 300)
    flat = {"effective_rank": 1.2, "directions": 99.0, "top_share": 0.9, "intra": 0.5, "inter": 0.6, "ratio": 0.83}
    assert tables.gates_of(run) == "hold"
    assert tables.gates_of(run | {"embedding": flat}) == "fail"
    assert tables.gates_of(run | {"embedding": flat, "loss": "none"}) == "hold"
    rows = tables.metrics([run | {"embedding": flat}])
    assert set(rows["gates"]) == {"hold"}, "the table tells both"
    assert rows["collapsed"].all()
    assert set(tables.pool([run | {"embedding": flat}])["gates"]) == {"fail"}
    lines = trust.collapse_section([run, record("triplet", "joint", 0.9, 300) | {"embedding": flat}], FIGURES)
    assert lines[-2].endswith("| no |")
    assert lines[-1].endswith("| effective rank 1.2 of 99 |")
