"""Figures: what they show, and that they are the same bytes each time."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from made_records import EPS, FIGURES, GATE, record, row, six
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from dml.config.load import load
from dml.data.base import Split
from dml.evaluation.examples import Examples
from dml.pipeline.digest import data_settings
from dml.pipeline.stages import figures
from dml.reporting import charts, draw, plots, scatter, style, tables, variants
from dml.reporting.kinds import alone_table


@pytest.fixture(autouse=True)
def closed() -> None:
    style.theme()
    plt.close("all")


def control(survive: int = 60) -> dict[str, Any]:
    return record("none", "pixels_8", 0.4, survive)


def palette(runs: list[dict[str, Any]]) -> style.Palette:
    return style.Palette({(run["loss"], run["defense"]) for run in runs}, FIGURES)


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].texts]


def test_colours_go_by_name_and_controls_are_grey() -> None:
    models = [("triplet", name) for name in ("act", "robust", "standard", "best", "single_step")]
    some = style.Palette([*models, ("none", "pixels_8"), ("none", "soft_histogram")], FIGURES)
    assert some.defenses == ["standard", "robust", "single_step", "act", "best"]
    looks = [some.look("triplet", name) for name in some.defenses]
    assert [look.color for look in looks] == list(style.COLORS[:5])
    assert len({look.marker for look in looks}) == 5
    assert style.Palette(models[1:3], FIGURES).look("x", "robust").color == style.COLORS[1], "in any company"
    few = style.Palette([("triplet", name) for name in ("standard", "start", "best")], FIGURES)
    assert few.look("triplet", "best").color == style.COLORS[4] == style.OWN_COLOR
    assert few.look("triplet", "start").color not in style.COLORS[:3], "these belong to others"
    grey = [some.look("none", name) for name in some.controls]
    assert len({look.color for look in grey}) == len({look.marker for look in grey}) == 2
    for look in grey:
        assert look.color[1:3] == look.color[3:5] == look.color[5:7]


def test_any_number_of_defences_can_be_told_apart() -> None:
    names = [f"defence_{place}" for place in range(18)]
    many = style.Palette([("triplet", name) for name in names], FIGURES)
    looks = [many.look("triplet", name) for name in names]
    assert len({(look.color, look.hatch) for look in looks}) == 18, "bars"
    assert len({(look.color, look.marker) for look in looks}) == 18, "lines"


def test_the_headline_has_a_bar_per_model_and_radius() -> None:
    runs = [*six(), control()]
    runs[1]["gates"] = [GATE | {"passed": False}]
    figure = charts.headline({EPS: tables.comparison(runs, EPS, FIGURES)}, palette(runs))
    assert [axes.get_title() for axes in figure.axes] == ["natural", "attacked, eps 8/255"]
    heights = [sorted(round(bar.get_height(), 3) for bar in axes.patches) for axes in figure.axes]
    assert heights == [[0.4, 0.8, 0.88, 0.89, 0.89, 0.9, 0.9], [0.0, 0.05, 0.15, 0.2, 0.245, 0.25, 0.5]]
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts.count("†\n0.50") == 1
    assert sum("†" in text for text in texts) == 1
    assert labels(figure) == ["standard", "robust", "single step", "pixels 8, untrained"]
    assert [text.get_text() for text in figure.axes[1].get_xticklabels()] == [
        "contrastive",
        "triplet",
        charts.CONTROLS,
    ]


def test_many_bars_keep_their_daggers_but_not_their_values() -> None:
    runs = [record("triplet", f"defence_{place}", 0.9, 40) for place in range(charts.LABELLED + 1)]
    runs[0]["gates"] = [GATE | {"passed": False}]
    figure = charts.headline({EPS: tables.comparison(runs, EPS, FIGURES)}, palette(runs))
    assert "".join(text.get_text() for text in figure.axes[1].texts).strip() == "†"


def test_the_scatter_tells_defences_losses_and_controls_apart() -> None:
    runs = [*six(), control()]
    runs[1]["gates"] = [GATE | {"passed": False}]
    figure = scatter.scatter({EPS: tables.comparison(runs, EPS, FIGURES)}, palette(runs))
    marks = {
        (line.get_xdata()[0], line.get_ydata()[0]): line for line in figure.axes[0].lines if line.get_marker() in "os^x"
    }
    assert set(marks) == {(run["natural"]["r1"], run["rows"][1]["r1"]) for run in runs}
    failed, held, grey = marks[0.88, 0.5], marks[0.8, 0.25], marks[0.4, 0.15]
    assert failed.get_color() == held.get_color() == style.COLORS[1], "one defence"
    assert (held.get_marker(), failed.get_marker(), grey.get_marker()) == ("o", "s", "x"), "two losses, a control"
    assert to_hex(failed.get_markerfacecolor()) == "#ffffff", "a gate does not hold"
    assert to_hex(held.get_markerfacecolor()) == style.COLORS[1].lower()
    assert figure.axes[0].get_xlabel() == "natural R@1"


def test_a_crowded_scatter_names_the_front_and_what_claims_are_about() -> None:
    names = ["standard", "robust", *(f"defence_{place}" for place in range(6))]
    runs = [record("triplet", name, 0.9 - 0.01 * place, 20 * place) for place, name in enumerate(names)]
    runs += [record("triplet", "behind", 0.83, 96, gates=[GATE | {"passed": False}])]
    runs += [record("triplet", "tied", 0.82, 30), control(), record("none", "pixels_16", 0.4, 20)]
    figure = scatter.scatter({EPS: tables.comparison(runs, EPS, FIGURES)}, palette(runs), (), [("triplet", "tied")])
    (panel,) = figure.axes
    assert {text.get_text() for text in panel.texts} == {*(name.replace("_", " ") for name in names), "tied"}
    (small,) = [line for line in panel.lines if to_hex(line.get_color()) == scatter.OTHER]
    assert (small.get_xdata()[0], small.get_ydata()[0]) == (0.83, 0.24)
    assert to_hex(small.get_markerfacecolor()) == "#ffffff", "a gate does not hold"
    assert [line.get_ydata()[0] for line in panel.lines if line.get_linestyle() == "--"] == [0.15], "the best control"
    keys = ["best control (pixels 8, untrained)", "Pareto front", "other models"]  # no control lies within the axes
    assert labels(figure) == ["triplet loss", *keys]
    natural = np.linspace(0, 1, 11)
    np.testing.assert_allclose(scatter._shrink(scatter._stretch(natural)), natural)


def radii(defense: str, loss: str = "triplet", queries: int = 200) -> dict[str, Any]:
    rows = [
        row("none", 0.0, queries, queries),
        *(row("worst", k / 255, queries - 20 * k, queries) for k in (1, 2, 4, 8)),
    ]
    return record(loss, defense, 1.0, 40, "radii", rows=rows, gates=[], claims=False)


def test_curves_start_at_the_natural_outcome_and_controls_are_dashed_in_every_panel() -> None:
    runs = [radii("standard"), radii("standard", "contrastive"), radii("pixels_8", "none")]
    figure = charts.accuracy_by_eps(tables.pool(runs), palette(runs), mark=(0.01,))
    assert [axes.get_title() for axes in figure.axes] == ["contrastive loss", "triplet loss"]
    for axes in figure.axes:
        curves = {line.get_linestyle(): line for line in axes.lines if len(line.get_xdata()) == 5}
        assert set(curves) == {"-", "--"}
        np.testing.assert_allclose(curves["-"].get_xdata(), [0, 1, 2, 4, 8])
        np.testing.assert_allclose(curves["-"].get_ydata(), [1, 0.9, 0.8, 0.6, 0.2])
        assert axes.get_xlabel() == "eps of the l-inf ball (1/255)"
    assert labels(figure) == ["standard", "pixels 8, untrained"]


def single(defense: str, loss: str = "triplet", queries: int = 200) -> dict[str, Any]:
    rows = [row("none", 0.0, queries, queries)]
    rows += [row(name, EPS, left, queries) for name, left in (("margin", 10), ("noise", 190), ("worst", 5))]
    return record(loss, defense, 1.0, 5, "single", rows=rows, alone=True, claims=False, gates=[])


def test_single_attacks_are_drawn_from_weak_to_strong() -> None:
    runs = [single("standard"), single("robust"), single("pixels_8", "none")]
    figure = charts.attacks_compared(alone_table(runs, EPS), palette(runs))
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        "none (natural)",
        "noise",
        "margin",
        "all of these",
    ]
    assert [axes.get_title() for axes in figure.axes] == ["triplet loss", charts.CONTROLS]
    points = next(line for line in figure.axes[0].lines if line.get_marker() == "o")
    np.testing.assert_allclose(points.get_xdata(orig=False), [1, 0.95, 0.05, 0.025])
    np.testing.assert_allclose(np.diff(points.get_ydata()), -1)


def certified(queries: int = 200) -> dict[str, Any]:
    rows = [row("none", 0.0, 9 * queries // 10, queries, norm="l2")]
    kinds = ("certified", "smoothed", "base")
    rows += [row(name, eps, 8 * queries // 10, queries, norm="l2") for name in kinds for eps in (0.1, 0.2)]
    return record("triplet", "robust", 0.9, 0, "certified", rows=rows, survival={}, gates=[], claims=False)


def test_certified_curves_have_a_line_per_kind() -> None:
    figure = charts.certified_curves(tables.pool([certified()]), palette([certified()]))
    assert {line.get_linestyle() for line in figure.axes[0].lines} == {"-", "--", ":"}
    assert figure.axes[0].get_xlabel() == "radius of the l2 ball (pixel units)"


def test_a_dataset_gets_every_figure_that_its_records_give(tmp_path: Path) -> None:
    runs = [*six(), control(), radii("robust"), single("robust"), certified()]
    elsewhere = record("triplet", "robust", 0.9, 1, dataset="others")
    drawn = draw.draw_records([*runs, elsewhere], "toys", FIGURES, tmp_path)
    names = ["headline", "scatter", "accuracy_by_eps", "attacks", "certified"]
    assert [file for file, _ in drawn] == [f"figures/toys/{name}.png" for name in names]
    for file, caption in drawn:
        assert style.caption_of(tmp_path / file) == caption, "the caption is kept in the file"
        assert (tmp_path / file).with_suffix(".svg").exists()
    assert "suite quick, 400 queries" in drawn[0][1]
    assert plt.get_fignums() == [], "nothing is left open"


def test_figures_need_enough_radii_and_queries(tmp_path: Path) -> None:
    few = [radii("robust", queries=199), single("robust", queries=199), certified(queries=199)]
    few[0]["rows"] = [*few[0]["rows"][:4]]
    assert draw.draw_records(few, "toys", FIGURES, tmp_path) == []
    short = radii("robust")
    short["rows"] = short["rows"][:-1]
    assert draw.draw_records([short], "toys", FIGURES, tmp_path) == []
    assert len(draw.draw_records([radii("robust"), single("robust")], "toys", FIGURES, tmp_path)) == 2


def test_figures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    runs = [*six(), control(), radii("robust"), single("robust"), certified()]
    for place in ("a", "b"):
        draw.draw_records(runs, "toys", FIGURES, tmp_path / place)
    files = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 10
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def shown(split: Split, after: int) -> Examples:
    rows = np.array([0, 2])
    embeddings = np.eye(4)[np.arange(4)]
    clean = split.images[rows] / 255
    return Examples(
        eps=EPS,
        rows=rows,
        labels=split.labels[rows],
        clean=clean,
        perturbed=np.clip(clean + EPS, 0, 1),
        before=np.array([[1, 2], [3, 0]]),
        after=np.array([[after, 1], [after, 3]]),
        start=embeddings[rows],
        end=embeddings[rows[::-1]],
        class_rows=np.arange(4),
        class_embeddings=embeddings,
    )


def test_examples_give_a_search_per_query_and_defence_and_one_map(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
    split = Split(images, np.array([0, 0, 1, 1]), ["one", "two"])
    found = {"standard": shown(split, 3), "robust": shown(split, 1)}
    drawn = draw.draw_examples(found, split, "toys", FIGURES, tmp_path)
    names = [Path(file).stem for file, _ in drawn]
    assert names == [f"search_{n}_{defense}" for n in (1, 2) for defense in ("standard", "robust")] + ["embeddings"]
    assert all((tmp_path / file).exists() for file, _ in drawn)
    assert draw.draw_examples({}, split, "toys", FIGURES, tmp_path) == []


def test_a_fooled_search_says_what_is_right_and_what_changed() -> None:
    query = np.full((4, 4, 3), 0.5)
    perturbed = query.copy()
    perturbed[0, 0] += EPS
    item = np.zeros((4, 4, 3), np.uint8)
    figure = plots.fooled_search(query, perturbed, [(item, True)], [(item, False)], eps=EPS, title="t")
    axes = np.array(figure.axes).reshape(2, 3)
    assert [cell.texts[0].get_text() for cell in axes[:, 2]] == ["right", "wrong"]
    change = axes[1, 1].images[0].get_array()
    np.testing.assert_allclose(change[0, 0], 1)
    np.testing.assert_allclose(change[1, 1], 0.5)


def test_training_curves_show_every_validation_score() -> None:
    epochs = pd.DataFrame({"loss": [0.5, -0.2], "natural": [0.1, 0.2], "adversarial": [0.0, 0.1], "own": [0.3, 0.4]})
    left, right = plots.training_curves(epochs, 1).axes
    names = [text.get_text() for text in right.get_legend().texts]
    assert names == ["natural", "adversarial", "own", "epoch kept"]
    assert left.get_ylim()[0] <= -0.2, "a loss may be negative"
    assert right.lines[-1].get_xdata()[0] == 2


def test_class_counts_are_drawn_alike_each_time() -> None:
    counts = pd.DataFrame({"split": ["train"] * 3 + ["test"] * 2, "images": [4, 5, 5, 6, 7]})
    drawn = [plots.class_counts(counts).axes[0] for _ in range(2)]
    first, again = ([points.get_offsets().tolist() for points in axes.collections] for axes in drawn)
    assert first == again
    assert sorted(x for points in first for x, _ in points) == [4, 5, 5, 6, 7]
    assert len({y for _, y in first[0]}) == 3, "equal counts do not hide each other"


def test_perturbations_are_amplified_to_the_full_range() -> None:
    clean = torch.full((10, 3, 4, 4), 0.5)
    perturbed = clean.clone()
    perturbed[0, :, 0, 0] += 0.01
    perturbed[0, :, 0, 1] -= 0.01
    figure = plots.perturbations(clean, perturbed, columns=3)
    rows = np.array(figure.axes).reshape(3, 3)
    change = rows[2, 0].images[0].get_array()
    np.testing.assert_allclose(change[0, :3, 0], [1, 0, 0.5], atol=1e-5)
    assert [cell.get_ylabel() for cell in rows[:, 0]] == ["clean", "perturbed", "change ×50"]
    same = plots.perturbations(clean, clean).axes
    assert same[16].get_ylabel() == "no change"
    np.testing.assert_allclose(same[16].images[0].get_array(), 0.5)


def test_names_beside_a_scatter_do_not_overlap_and_stay_near_their_marks() -> None:
    values = [0.0, 0.01, 0.02, 0.5, 0.93, 0.95, 0.96]
    heights = scatter.spread_out(values, 0.05)
    assert np.diff(heights).min() >= 0.05 - 1e-9
    assert min(heights) >= 0
    assert max(heights) <= 1
    assert heights[3] == pytest.approx(0.5), "it has room"
    assert scatter.spread_out([0.9] * 20, 0.05)[-1] == pytest.approx(1)


def test_the_pareto_front_holds_what_nothing_beats_in_both() -> None:
    found = pd.DataFrame({"natural": [0.9, 0.95, 0.8, 0.97, 0.7], "r1": [0.5, 0.4, 0.6, 0.4, 0.1]})
    front = scatter.pareto_front(found)
    assert list(zip(front["natural"], front["r1"], strict=True)) == [(0.8, 0.6), (0.9, 0.5), (0.97, 0.4)]


def test_a_suite_of_one_radius_ranks_many_defences() -> None:
    runs = [record("triplet", f"defence_{place}", 0.9, 40) for place in range(8)]
    figure = charts.ranked({EPS: tables.comparison(runs, EPS, FIGURES)}, palette(runs), {"defence_3"})
    assert labels(figure) == ["natural", "attacked, eps 8/255"]
    colors = {to_hex(line.get_color()) for line in figure.axes[0].lines}
    assert colors == {style.OTHER, palette(runs).look("triplet", "defence_3").color.lower()}


def trained_with(name: str, kind: str, survive: int, loss: str = "triplet") -> dict[str, Any]:
    made = record(loss, name, 0.9, survive)
    return made | {"settings": made["settings"] | {"defense": {"name": name, "defense": kind}}}


def test_of_many_variants_the_headline_shows_each_class_of_defence_at_its_best() -> None:
    runs = [trained_with("standard", "standard", 4), trained_with("standard", "standard", 8, "contrastive")]
    runs += [trained_with("robust", "robust", 100), trained_with("robust_20", "robust", 200)]
    runs += [trained_with("best", "nearest", 240), trained_with("best_8", "nearest", 150), control()]
    found = tables.ranked(tables.comparison(runs, EPS, FIGURES))
    kept = variants.at_their_best(found, runs)
    assert kept == [("triplet", "best"), ("triplet", "robust_20"), ("contrastive", "standard")]
    named = variants.at_their_best(found, runs, {"robust", "best", "standard"})
    assert named == [*kept[:2], ("triplet", "robust"), *kept[2:]]
    query = trained_with("robust_query", "robust", 220, "multi_similarity")
    query["settings"]["defense"]["target"] = "query"
    ours = tables.ranked(tables.comparison([*runs, query], EPS, FIGURES))
    both = variants.at_their_best(ours, [*runs, query])
    assert both == [kept[0], ("multi_similarity", "robust_query"), *kept[1:]], "not of the class of the paper's"
    figure = charts.ranked({EPS: draw._only(found, named)}, palette(runs), {"robust", "best", "standard"})
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == [
        "contrastive, standard",
        "pixels 8, untrained",
        "triplet, robust",
        "triplet, robust 20",
        "triplet, best",
    ]


def test_of_many_defences_only_named_ones_have_a_colour_in_the_scatter() -> None:
    runs = [trained_with(f"defence_{place}", "robust", 100 + 20 * place) for place in range(6)]
    runs += [trained_with("standard", "standard", 4), trained_with("best", "nearest", 250)]
    figure = scatter.scatter(
        {EPS: tables.comparison(runs, EPS, FIGURES)},
        palette(runs),
        {"standard", "best"},
        [("triplet", "standard"), ("triplet", "best")],
    )
    colors = {
        line.get_ydata()[0]: to_hex(line.get_color()) for line in figure.axes[0].lines if line.get_marker() == "o"
    }
    assert colors[0.01] == style.COLORS[0].lower()
    assert colors[0.625] == style.OWN_COLOR.lower()
    assert colors[0.5] == style.LEADING, "among the leading ones"
    assert colors[0.25] == style.OTHER


def test_models_that_were_not_measured_leave_no_gap_between_bars() -> None:
    runs = [record("triplet", "standard", 0.9, 20), record("triplet", "robust", 0.9, 200)]
    runs += [record("contrastive", "robust", 0.9, 100)]
    figure = charts.headline({EPS: tables.comparison(runs, EPS, FIGURES)}, palette(runs))
    middles = sorted(bar.get_x() + bar.get_width() / 2 for bar in figure.axes[0].patches)
    np.testing.assert_allclose(middles, [0, 2, 3], err_msg="contrastive, a gap, triplet")


def test_natural_scores_close_to_one_are_drawn_apart_beside_few_defences_too() -> None:
    runs = [record("triplet", "standard", 0.97, 20), record("triplet", "robust", 0.98, 200), control()]
    (panel,) = scatter.scatter({EPS: tables.comparison(runs, EPS, FIGURES)}, palette(runs)).axes
    assert panel.get_xscale() == "function"
    assert all(tick >= 0 for tick in panel.get_yticks())
    low = [record("triplet", "standard", 0.5, 0), record("triplet", "robust", 0.4, 2)]
    (panel,) = scatter.scatter({EPS: tables.comparison(low, EPS, FIGURES)}, palette(low)).axes
    assert panel.get_xscale() == "linear"
    assert all(tick >= 0 for tick in panel.get_yticks()), "no share is below 0"


def test_examples_are_not_shown_over_images_of_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader may have prepared others by hand; rows of the examples would point at other images."""
    params, asked = load(), []

    def found(workspace: str, folder: str, settings: dict, chapter: str) -> Path:
        asked.append(settings)
        raise FileNotFoundError

    monkeypatch.setattr(figures, "find_made_with", found)
    monkeypatch.setattr(figures, "draw_examples", lambda *given: pytest.fail("drawn"))
    results = figures.Results(params, [], [], "scratch", tmp_path)
    assert figures.draw_searches(results, "glyphs") == []
    assert asked == [data_settings(params.recipe("glyphs").data)]
