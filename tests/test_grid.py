"""Training radius against test radius, and what each part of a defence is worth."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_records import EPS, FIGURES, record, row, six
from matplotlib.patches import Rectangle

from dml.reporting import ablation, draw, grid, pages, style
from dml.reporting.ablation import Change
from dml.reporting.paired import in_r1, of_shares
from dml.reporting.records import eps_key
from dml.reporting.spelling import interval
from dml.reporting.variants import leaves, one_difference

TESTED = (1, 2, 4, 8)  # /255
SCHEDULE = {"epochs": 12, "averaging": 0.98}
BEST = {"defense": "nearest", "eps": 20 / 255, "steps": 3, "natural": 1.0}
ROBUST = {"defense": "robust", "target": "positive", "steps": 3}


def run(
    name: str,
    settings: dict[str, Any],
    survive: tuple[int, ...] = (90, 80, 70, 60, 50),
    natural: float = 0.9,
    schedule: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A record of suite radii on 200 queries: the percentages that survive naturally and at each tested radius."""
    left = zip((0, *TESTED), survive, strict=True)
    rows = [row("worst" if k else "none", k / 255, 2 * share, 200) for k, share in left]
    told = {"loss": {"name": "triplet"}, "schedule": SCHEDULE | (schedule or {}), "defense": {"name": name, **settings}}
    return record("triplet", name, natural, 0, "radii", rows=rows, settings=told, gates=[], claims=False) | changes


def family() -> list[dict[str, Any]]:
    """Three training radii of `robust` and the baseline."""
    return [
        run("robust_20", ROBUST | {"eps": 20 / 255}, (90, 85, 80, 70, 50), 0.91),
        run("robust", {"target": "positive", "steps": 3, "eps": EPS}, (97, 90, 80, 60, 30), 0.95),
        run("robust_2", ROBUST | {"eps": 2 / 255}, (99, 90, 70, 30, 5), 0.97),
        run("standard", {}, (98, 60, 30, 10, 0), 0.96),
    ]


def test_few_queries_make_no_family() -> None:
    few = family()
    for one in few:
        one["rows"] = [row | {"queries": 199} for row in one["rows"]]
    assert grid.families(family(), FIGURES) != grid.families(few, FIGURES) == []


def test_a_family_stands_for_its_variants() -> None:
    found = grid.families(family(), FIGURES)
    assert grid.variants(found) == {("triplet", "robust_20"), ("triplet", "robust_2")}
    assert grid.variants([]) == set()


def test_defaults_are_settings_and_the_name_is_none() -> None:
    plain, told = run("robust", {"eps": EPS}), run("other", {"defense": "robust", "eps": EPS, "target": "positive"})
    assert leaves(plain) == leaves(told)
    assert leaves(plain)["defense.target"] == "positive"
    assert leaves(plain)["schedule.averaging"] == 0.98


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (run("x", BEST), None),
        (run("x", {**BEST, "natural": 0.0}), "defense.natural"),
        (run("x", {key: value for key, value in BEST.items() if key != "natural"}), "defense.natural"),
        (run("x", BEST | {"eps": EPS}), "defense.eps"),
        (run("x", BEST, schedule={"averaging": 0.0}), "schedule.averaging"),
        (run("x", BEST | {"eps": EPS}, schedule={"averaging": 0.0}), None),
    ],
    ids=["nothing", "a value", "a default", "the radius", "the schedule", "two"],
)
def test_the_one_setting_that_differs_is_named(other: dict[str, Any], name: str | None) -> None:
    assert one_difference(leaves(other), leaves(run("best", BEST))) == name


def test_a_family_differs_in_the_training_radius_alone() -> None:
    runs = [
        *family(),
        run("robust_anchor", ROBUST | {"target": "anchor", "eps": EPS}),  # another target
        run("robust_short", ROBUST | {"eps": 4 / 255}, schedule={"epochs": 3}),
        *(run(f"best_{k}", BEST | {"eps": k / 255}) for k in (4, 8)),  # two radii only
        *(run(f"other_{k}", ROBUST | {"eps": k / 255}, suite="another") for k in (2, 4)),
        record("none", "pixels_8", 0.4, 60, "radii"),
    ]
    (found,) = grid.families(runs, FIGURES)
    assert (found.name, found.loss, found.suite) == ("robust", "triplet", "radii")
    assert [record["defense"] for own in found.members.values() for record in own] == [
        "standard", "robust_2", "robust", "robust_20"
    ]  # fmt: skip
    table = found.table()
    np.testing.assert_allclose(table.index * 255, [0, 2, 8, 20])
    np.testing.assert_allclose(table.columns * 255, [0, 1, 2, 4, 8])
    np.testing.assert_allclose(table.loc[0.0], [0.98, 0.6, 0.3, 0.1, 0])
    np.testing.assert_allclose(found.natural(), [0.96, 0.97, 0.95, 0.91])


def test_no_family_without_three_training_radii_or_four_tested_ones() -> None:
    assert grid.families(six(), FIGURES) == []
    assert grid.families(family()[1:], FIGURES) == []
    few = [run | {"rows": run["rows"][:4]} for run in family()]
    assert grid.families(few, FIGURES) == []
    (bare,) = grid.families(family()[:3], FIGURES)
    assert min(bare.members) == 2 / 255, "no baseline was attacked"


def test_cells_are_means_over_the_seeds_that_have_all_radii() -> None:
    again = [run | {"seed": 1, "rows": [r | {"r1": r["r1"] / 2} for r in run["rows"]]} for run in family()]
    third = family()[0] | {"seed": 2, "rows": family()[3]["rows"]}
    (once,) = grid.families(family(), FIGURES)
    (twice,) = grid.families([third, *again, *family()], FIGURES)
    np.testing.assert_allclose(twice.table(), once.table() * 0.75)
    assert "mean of 2 trainings" in grid.caption([twice], "toys")
    (other,) = grid.families([*again[:3], *family()], FIGURES)
    assert 0.0 not in other.members, "the baseline lacks a seed"


def test_equals_are_all_best_and_nothing_is_best_where_nothing_is_left() -> None:
    (found,) = grid.families(family(), FIGURES)
    best = {
        round(eps * 255): [round(radius * 255) for radius in radii] for eps, radii in grid.best(found.table()).items()
    }
    assert best == {0: [2], 1: [2, 8], 2: [8, 20], 4: [20], 8: [20]}
    lost = [run | {"rows": [r | {"r1": r["r1"] * (r["eps"] < EPS)} for r in run["rows"]]} for run in family()]
    (found,) = grid.families(lost, FIGURES)
    assert EPS not in grid.best(found.table())


def test_the_figure_frames_the_best_of_each_column() -> None:
    style.theme()
    anchors = [run(f"anchor_{k}", ROBUST | {"target": "anchor", "eps": k / 255}) for k in (2, 4, 8)]
    found = grid.families([*family(), *anchors], FIGURES)
    figure = grid.grid(found)
    left, right, bar = figure.axes
    assert [axes.get_title() for axes in (left, right)] == ["robust, triplet loss", "anchor 2, triplet loss"]
    assert (left.get_xlabel(), left.get_ylabel(), bar.get_ylabel()) == (
        "test eps (1/255)", "training eps (1/255)", "R@1 left"
    )  # fmt: skip
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["0", "1", "2", "4", "8"]
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["0", "2", "8", "20"]
    frames = {patch.get_xy() for patch in left.patches if isinstance(patch, Rectangle)}
    assert frames == {(0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (4, 3)}
    bold = [text.get_text() for text in left.texts if text.get_fontweight() == "bold"]
    assert bold == ["0.99", "0.90", "0.90", "0.80", "0.80", "0.70", "0.50"]
    assert {axes.collections[0].get_clim() for axes in (left, right)} == {(0, 1)}
    plt.close("all")


def test_the_page_shows_the_grid_and_says_what_is_best(tmp_path: Path) -> None:
    style.theme()
    names = [Path(file).stem for file, _ in draw.draw_records(family(), "toys", FIGURES, tmp_path)]
    assert names == ["accuracy_by_eps", "grid"]
    pages.write(tmp_path, family(), [], FIGURES, {"toys": "Drawn here."})
    text = (tmp_path / "pages" / "toys.md").read_text()
    shown = text.split("## Training radius and test radius")[1].split("\n## ")[0]
    assert (
        "- **robust, triplet loss**: the training eps that keeps the most R@1 is 2/255 on natural images, "
        "2/255 and 8/255 at test eps 1/255, 8/255 and 20/255 at test eps 2/255, 20/255 at test eps 4/255 to 8/255. "
        "Natural R@1 over the whole test half is 0.970 at training eps 2/255 and 0.910 at training eps 20/255; "
        "undefended, it is 0.960."
    ) in shown
    assert "suite radii. Test eps 0 is natural" in shown
    assert text.count("![") == 2
    assert shown.count("](../figures/toys/grid.png)") == 1
    pages.write(tmp_path, six(), [], FIGURES, {})
    assert "Training radius" not in (tmp_path / "pages" / "toys.md").read_text()


def parts() -> list[dict[str, Any]]:
    """The best of a class, runs that differ from it in one setting or two, and another class."""

    def one(name: str, settings: dict, survive: int, natural: float = 0.9, averaging: float = 0.98) -> dict[str, Any]:
        made = record("triplet", name, natural, survive, "study")
        schedule = SCHEDULE | {"averaging": averaging}
        return made | {"settings": {"schedule": schedule, "defense": {"name": name, **settings}}}

    return [
        one("best", BEST, 320, 0.95),
        one("nearest", {"eps": EPS, "steps": 3}, 200),
        one("nearest_20", {"defense": "nearest", "eps": 20 / 255, "steps": 3}, 280, 0.96),
        one("best_8", BEST | {"eps": EPS}, 260),
        one("best_4", BEST | {"eps": 4 / 255}, 240),
        one("unaveraged", BEST, 300, averaging=0.0),
        one("robust", {"eps": EPS}, 100),
        one("robust_short", {"defense": "robust", "eps": EPS}, 80, averaging=0.5),
        one("joint", {"eps": EPS}, 310),
        record("none", "pixels_8", 0.4, 60, "study"),
    ]


def test_the_best_of_each_class_is_compared_with_those_that_differ_in_one_setting() -> None:
    assert ablation.changes(parts(), EPS, FIGURES) == [
        Change("triplet", "unaveraged", "best", "schedule.averaging", 0.0, 0.98),
        Change("triplet", "nearest_20", "best", "defense.natural", 0.0, 1.0),
        Change("triplet", "best_8", "best", "defense.eps", EPS, 20 / 255),
        Change("triplet", "robust_short", "robust", "schedule.averaging", 0.5, 0.98),
    ]


def test_the_objective_and_the_stepping_of_the_adversary_are_parts_too() -> None:
    def one(name: str, settings: dict[str, Any], survive: int) -> dict[str, Any]:
        made = record("triplet", name, 0.9, survive, "study")
        return made | {"settings": {"schedule": SCHEDULE, "defense": {"name": name, **settings}}}

    large = {"eps": 20 / 255, "steps": 3}
    runs = [
        one("best", BEST, 320),
        one("best_fast", BEST | {"steps": 1, "step_size": 20 / 255, "noise": 2.0}, 300),
        one("robust_20", large | {"defense": "robust"}, 280),
        one("robust_short", large | {"defense": "robust", "steps": 2}, 240),
        one("hardness_20", large | {"defense": "hardness"}, 290),
        one("standard", {}, 4),
    ]
    stepping = {"steps": 1, "step_size": 20 / 255, "noise": 2.0}, {"steps": 3}
    assert ablation.changes(runs, EPS, FIGURES)[:3] == [
        Change("triplet", "best_fast", "best", "adversary", *stepping),
        Change("triplet", "hardness_20", "best", "defense.class", "hardness", "nearest"),
        Change("triplet", "robust_20", "best", "defense.class", "robust", "nearest"),
    ], "two steps are not three"
    rows = ablation.section(runs, EPS, FIGURES)[5:]
    assert "| `adversary`: {steps: 1, step_size: 20/255, noise: 2} → {steps: 3} |" in rows[0]
    assert "| hardness 20 | best | `class`: hardness → nearest |" in rows[1]


def test_what_differs_from_best_in_one_setting_is_a_part_of_best_whichever_leads() -> None:
    runs = parts()
    ahead = record("triplet", "nearest_20", 0.96, 330, "study")
    runs[2] = ahead | {"settings": runs[2]["settings"]}
    assert ablation.changes(runs, EPS, FIGURES)[:4] == [
        Change("triplet", "nearest_20", "best", "defense.natural", 0.0, 1.0),
        Change("triplet", "unaveraged", "best", "schedule.averaging", 0.0, 0.98),
        Change("triplet", "best_8", "best", "defense.eps", EPS, 20 / 255),
        Change("triplet", "nearest", "nearest_20", "defense.eps", EPS, 20 / 255),
    ]


def test_the_table_says_what_each_part_is_worth() -> None:
    _, text, _, header, _, *rows = ablation.section(parts(), EPS, FIGURES)
    assert "at eps 8/255 under suite `study`" in text
    assert "2012). `best` was chosen on held-out classes; every other" in text
    assert header == "| loss | from | to | setting | change of natural R@1 | of R@1 at 8/255 |"
    found = of_shares(np.repeat([1, 0], [40, 360]))
    worth = f"**+0.100** {interval(found.low, found.high)}"
    assert rows[1] == f"| triplet | nearest 20 | best | `natural`: 0 → 1 | -0.010 | {worth} |"
    assert "| best 8 | best | `eps`: 8/255 → 20/255 | +0.050 |" in rows[2]
    runs = [part | {"gates": [part["gates"][0] | {"passed": False}]} for part in parts()]
    assert "| unaveraged† | best† |" in ablation.section(runs, EPS, FIGURES)[5]
    assert ablation.section(six(), EPS, FIGURES) == []
    assert ablation.section([run | {"claims": False} for run in parts()], EPS, FIGURES) == []


def test_the_table_says_which_were_chosen_on_held_out_classes() -> None:
    runs = parts()
    longer = record("triplet", "best_long", 0.95, 340, "study") | {"settings": runs[5]["settings"]}
    assert (
        "`best` and `best_long` were chosen on held-out classes; every"
        in ablation.section([*runs, longer], EPS, FIGURES)[1]
    )
    assert "2012). Each *to* was chosen" in ablation.section(runs[6:8], EPS, FIGURES)[1]


def test_queries_that_differ_are_not_compared_and_seeds_are_counted_together() -> None:
    first, *_, unaveraged = parts()[:6]
    short = unaveraged | {"survival": {eps_key(EPS): "1" * 200}}
    assert ablation.section([first, short], EPS, FIGURES) == []
    again = [run | {"seed": 1} for run in (first, unaveraged)]
    line = ablation.section([first, unaveraged, *again], EPS, FIGURES)[-1]
    expected = in_r1([(first, unaveraged), (again[0], again[1])], eps_key(EPS))
    assert line.endswith(f"**{expected.value:+.3f}** {interval(expected.low, expected.high)} |")


def test_the_page_shows_the_table(tmp_path: Path) -> None:
    pages.write(tmp_path, parts(), [], FIGURES, {})
    assert "## What each part is worth\n\n*To* is `best`, or" in (tmp_path / "pages" / "toys.md").read_text()
