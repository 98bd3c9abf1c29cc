"""The best model, and the project's own defence, against all others."""

from typing import Any

from made_records import EPS, FIGURES, GATE, record, row

from dml.reporting import pages, standing

KEY = "0.031373"


def run(loss: str, defense: str, survive: int, precision: float | None = None, **changes: Any) -> dict[str, Any]:
    """400 queries of which the first survive; MAP@R is the same for every second one."""
    if precision is not None:
        changes |= {
            "rows": [row("map", EPS, survive, map_r=precision), row("worst", EPS, survive)],
            "map_r": {KEY: f"{precision:.4f} {precision / 2:.4f} " * 200},
        }
    return record(loss, defense, 0.9, survive, **changes)


def test_the_section_says_which_models_the_best_is_ahead_of() -> None:
    runs = [
        run("triplet", "robust", 200, 0.4),
        run("triplet", "standard", 20, 0.1),
        run("contrastive", "robust", 196, 0.4),
        run("none", "pixels_8", 220),
    ]
    lines = standing.best_section(runs, FIGURES)
    assert lines[1] == "## The best model against the others, query by query"
    assert lines[3] == (
        "At eps 8/255, **triplet, robust** is ahead of 1 of 2 other models in R@1 beyond chance (behind pixels "
        "8, untrained, not separated from contrastive, robust). It is ahead of 1 of 2 other models in MAP@R beyond "
        "chance (not separated from contrastive, robust)."
    )
    start = next(place for place, line in enumerate(lines) if line.startswith("| against"))
    assert lines[start] == "| against | queries | R@1 ahead by | p | MAP@R ahead by | p |"
    control, close, far = lines[start + 2 :]
    assert control == "| pixels 8, untrained | 400 | -0.050 (-0.072 to -0.027) | < 0.0001 | – | – |"
    # p of four queries, all one way: 2/2^4; the largest of three is not raised, and MAP@R is the same.
    assert close.startswith("| contrastive, robust | 400 | +0.010 (-0.002 to 0.022) | 0.1250 | +0.000 (0.000 to 0.000)")
    assert far.startswith("| triplet, standard | 400 | +0.450 (")
    assert far.endswith("| < 0.0001 | +0.225 (0.218 to 0.232) | < 0.0001 |")


def test_models_that_another_suite_alone_attacked_are_compared_there() -> None:
    runs = [run("triplet", "robust", 200), run("triplet", "standard", 20), run("none", "pixels_8", 10)]
    other = [
        record("triplet", name, 0.9, survive, suite="auto")
        for name, survive in {"robust": 190, "standard": 15, "act": 20, "est": 189}.items()
    ]
    assert standing.elsewhere(runs, "quick", FIGURES) == []
    assert standing.elsewhere([*runs, *other[1:]], "quick", FIGURES) == [], "the best model did not meet that suite"
    assert standing.elsewhere([*runs, *other], "quick", FIGURES) == [
        "",
        "Of the models that suite `auto` alone attacked: **triplet, robust** is ahead of 1 of 2 other models in R@1 "
        "beyond chance (not separated from triplet, est).",
    ]
    assert standing.elsewhere([runs[2], *other], "quick", FIGURES) == [], "no model was trained"


def test_the_section_of_a_model_that_leads_all_others() -> None:
    runs = [run("triplet", "robust", 200), run("triplet", "standard", 194), run("triplet", "act", 20)]
    text = standing.best_section(runs, FIGURES)[3]
    assert text == (
        "At eps 8/255, **triplet, robust** is ahead of all 2 other models in R@1 beyond chance (largest corrected p "
        "0.0312)."
    )
    assert "is ahead of the other model in R@1" in standing.best_section(runs[:2], FIGURES)[3]
    runs[0]["gates"] = [GATE | {"passed": False}]
    assert "**triplet, robust†** is" in standing.best_section(runs, FIGURES)[3]
    runs[1] = run("triplet", "standard", 199)
    assert "robust†** is not separated from the other model in R@1." in standing.best_section(runs[:2], FIGURES)[3]
    assert standing.best_section(runs[:1], FIGURES) == []
    assert standing.best_section([run("none", "pixels_8", 10), run("none", "pixels_16", 9)], FIGURES) == []
    assert standing.best_section([], FIGURES) == []


def test_many_comparisons_are_folded_and_stand_after_the_models() -> None:
    runs = [run("triplet", f"defence_{place:02d}", 100 + place) for place in range(14)]
    text = pages.dataset_page("toys", runs, [], FIGURES, "", [])
    section = text.split("## The best model against the others")[1].split("\n## ")[0]
    assert "<details><summary>All 13 comparisons</summary>" in section
    told = "is ahead of 5 of 13 other models in R@1 beyond chance (not separated from 8 of 13 other models)."
    assert told in section, "eight are too many to name"
    assert text.index("## Models compared") < text.index("## The best model")
    few = pages.dataset_page("toys", runs[:5], [], FIGURES, "", [])
    assert "<details>" not in few.split("## The best model against the others")[1].split("\n## ")[0]


def test_a_best_model_behind_the_controls_is_said_to_be_behind() -> None:
    runs = [run("triplet", "robust", 40), run("triplet", "standard", 38)]
    runs += [run("none", "pixels_8", 100), run("none", "pixels_16", 200)]
    told = "**triplet, robust** is behind all 2 controls and not separated from the other model in R@1."
    assert told in standing.best_section(runs, FIGURES)[3]
    runs[1:2] = [run("triplet", "standard", 38), run("triplet", "act", 37)]
    told = "is behind all 2 controls and not separated from any of the 2 other models in R@1."
    assert told in standing.best_section(runs, FIGURES)[3]
    runs = [run("triplet", "nearest", 110), run("triplet", "robust", 109)]
    runs += [run("none", f"pixels_{side}", 50) for side in (4, 8, 16)]
    told = "**triplet, nearest** is ahead of all 3 controls in R@1 beyond chance (not separated from triplet, robust)."
    assert told in standing.best_section(runs, FIGURES)[3]


def settled(name: str, settings: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    return made | {"settings": {"defense": {"name": name, **settings}}}


def own(best: int = 250, nearest: int = 254) -> list[dict[str, Any]]:
    """The project's own defence, a variant that is slightly ahead of it, a weak variant, and two other defences."""
    large = {"defense": "nearest", "eps": 20 / 255, "steps": 3}
    return [
        settled("nearest_20", large, run("triplet", "nearest_20", nearest, 0.5)),
        settled("best", large | {"natural": 1.0}, run("triplet", "best", best, 0.48)),
        settled("best_8", large | {"natural": 1.0, "eps": EPS}, run("triplet", "best_8", 180, 0.4)),
        settled("robust", {"eps": EPS}, run("triplet", "robust", 200, 0.41)),
        settled("standard", {}, run("triplet", "standard", 20, 0.1)),
        run("none", "pixels_8", 60, 0.05),
    ]


def test_where_a_variant_of_best_leads_best_is_compared_too() -> None:
    lines = standing.best_section(own(), FIGURES)
    place = lines.index("### `best` against the others, query by query")
    assert lines[3].startswith("At eps 8/255, **triplet, nearest 20** is ahead of the control and 3 of 4 other models")
    assert lines[3].count("not separated from triplet, best") == 1, "in MAP@R it is ahead"
    told, variants = lines[place + 2], lines[place + 3 : place + 8]
    assert told.startswith(
        "At eps 8/255, **triplet, best**, of which triplet, nearest 20 is a variant, is ahead of the control and all 2 "
        "models of other defences in R@1 beyond chance"
    )
    assert "It is ahead of the control and all 2 models of other defences in MAP@R beyond chance" in told
    assert variants[3:] == [
        "- R@1: ahead of triplet, best 8, not separated from triplet, nearest 20.",
        "- MAP@R: ahead of triplet, best 8, behind triplet, nearest 20.",
    ]
    rows = [line for line in lines[place:] if line.startswith("| triplet") or line.startswith("| pixels")]
    assert [row.split(" | ")[0] for row in rows] == [
        "| triplet, nearest 20",
        "| triplet, robust",
        "| triplet, best 8",
        "| pixels 8, untrained",
        "| triplet, standard",
    ]


def test_best_is_compared_once_where_it_leads_and_beside_a_leader_of_another_kind() -> None:
    lines = standing.best_section(own(best=300), FIGURES)
    assert lines[3].startswith("At eps 8/255, **triplet, best** is")
    assert not [line for line in lines if line.startswith("###")]
    runs = own()
    runs[3] = settled("robust", {"eps": EPS}, run("triplet", "robust", 300, 0.41))
    lines = standing.best_section(runs, FIGURES)
    told = lines[lines.index("### `best` against the others, query by query") + 2]
    assert told.startswith("At eps 8/255, **triplet, best** is ahead")
    assert "the control and 1 of 2 models of other defences in R@1 beyond chance (behind triplet, robust)" in told


def test_of_two_own_defences_the_better_is_compared() -> None:
    runs = own()
    runs[3] = settled("robust", {"eps": EPS}, run("triplet", "robust", 300, 0.41))
    longer = {"defense": "nearest", "eps": 20 / 255, "steps": 3, "natural": 1.0}
    runs.append(settled("best_long", longer, run("triplet", "best_long", 260, 0.5)))
    lines = standing.best_section(runs, FIGURES)
    told = lines[lines.index("### `best long` against the others, query by query") + 2]
    assert told.startswith("At eps 8/255, **triplet, best long** is ahead of the control and 1 of 2 models of")
    assert not [line for line in lines if line.startswith("### `best`")]
    doubtful = [entry | {"gates": [entry["gates"][0] | {"passed": False}]} for entry in runs]
    assert "### `best long` against the others, query by query" in standing.best_section(doubtful, FIGURES)
    runs[3] = settled("robust", {"eps": EPS}, run("triplet", "robust", 200, 0.41))
    assert not [line for line in standing.best_section(runs, FIGURES) if line.startswith("###")], "it leads"


def test_one_sentence_counts_whom_the_leading_models_are_ahead_of() -> None:
    """Five others; three of them are no variant of `best`."""
    told = standing.counted_text(standing.standings(own(), FIGURES), FIGURES)
    assert told == (
        "Models and controls beaten beyond chance at eps 8/255: **triplet, nearest 20** beats 4 of 5 in R@1 and 5 of 5 "
        "in MAP@R; **triplet, best** beats 3 of 3 in R@1 and 3 of 3 in MAP@R, variants of it left out."
    )
