"""The leading model against each control, score by score."""

from typing import Any

import pandas as pd
from made_records import EPS, FIGURES, GATE, record, row

from dml.evaluation.statistics import wilson
from dml.reporting import against_controls, pages

QUICK = "Suite `quick`, 400 queries: "
KEYS = {0.01: "0.010000", EPS: "0.031373"}


def run(loss: str, defense: str, natural: float, survive: dict[float, int], **changes: Any) -> dict[str, Any]:
    """400 queries of which the first survive."""
    rows = [row("worst", eps, number) for eps, number in survive.items()]
    survival = {KEYS[eps]: "1" * number + "0" * (400 - number) for eps, number in survive.items()}
    return record(loss, defense, natural, 0, rows=rows, survival=survival, **changes)


def runs() -> list[dict[str, Any]]:
    return [
        run("triplet", "best", 0.8, {0.01: 300, EPS: 100}),
        run("triplet", "robust", 0.9, {0.01: 320, EPS: 120}),
        run("none", "pixels_8", 0.5, {0.01: 200, EPS: 40}),
        run("none", "soft_histogram", 0.85, {0.01: 297, EPS: 130}),
    ]


def test_each_score_says_which_controls_the_projects_own_model_is_ahead_of() -> None:
    lines = against_controls.section(runs(), FIGURES)
    assert lines[1].startswith(
        f"{QUICK}**triplet, best** is behind soft histogram in natural R@1; behind pixels 8, soft histogram in natural "
        "MAP@R; "
        "not separated from soft histogram in R@1 at 0.01; behind soft histogram in R@1 at 8/255. Natural scores"
    ), "MAP@R is .55 of each: not ahead"
    assert lines[3] == "| ahead of | natural R@1 | natural MAP@R | R@1 at 0.01 | R@1 at 8/255 |"
    # Of 402 queries, one of them added for either model, 101 are ahead and one behind: the mean is 100 / 402.
    assert lines[5].startswith("| pixels 8 | +0.300 (0.260 to 0.339) | +0.000 | +0.250 (")
    assert "| +0.007~ (" in lines[6], "three queries: p is .25"
    assert "| -0.075 (" in lines[6]


def test_natural_shares_are_compared_by_the_interval_of_newcombe() -> None:
    """His example, 56 of 70 against 48 of 80, whose interval is .0524 to .3339 (1998, table II, method 10)."""
    sides = []
    for hits, count in ((56, 70), (48, 80)):
        low, high = wilson(hits, count)
        sides.append(pd.Series({"natural": hits / count, "natural_low": low, "natural_high": high}))
    found = against_controls.natural(*sides)
    assert (round(found.value, 4), round(found.low, 4), round(found.high, 4)) == (0.2, 0.0524, 0.3339)
    assert (found.verdict, against_controls.natural(*sides[::-1]).verdict) == ("holds", "fails")
    assert against_controls.natural(sides[0], sides[0]).verdict == "not separated"


def test_a_model_ahead_of_all_is_said_to_be_and_a_broken_gate_marked() -> None:
    few = runs()[:3]
    few[0]["natural"] = {"queries": 1000, "r1": 0.8, "map_r": 0.6}
    few[0]["gates"] = [GATE | {"passed": False}]
    few[0]["settings"] |= {"defense": {"name": "best", "defense": "nearest"}}
    told = "**triplet, best†** is ahead of every control in natural R@1, natural MAP@R, R@1 at 0.01, R@1 at 8/255."
    assert against_controls.section(few, FIGURES)[1].startswith(QUICK + told)
    assert told in pages.dataset_page("toys", few, [], FIGURES, "", [])


def test_a_score_that_a_control_lacks_is_left_out() -> None:
    some = runs()
    some[3] = run("none", "soft_histogram", 0.85, {EPS: 130})
    header = against_controls.section(some, FIGURES)[3]
    assert header == "| ahead of | natural R@1 | natural MAP@R | R@1 at 8/255 |"


def test_without_a_model_of_the_project_the_best_is_compared_and_without_controls_nothing() -> None:
    assert against_controls.section(runs()[1:], FIGURES)[1].startswith(
        "Suite `quick`, 400 queries: **triplet, robust** is "
    )
    assert against_controls.section(runs()[:2], FIGURES) == []
    assert against_controls.section(runs()[2:], FIGURES) == []


def test_the_suite_with_the_most_queries_counts_if_it_has_controls() -> None:
    more = [
        run(loss, name, 0.9, {EPS: 399}, suite="wide") for loss, name in (("triplet", "best"), ("none", "pixels_8"))
    ]
    for record_ in more:
        record_["rows"] = [row("worst", EPS, 499, 500)]
        record_["survival"] = {KEYS[EPS]: "1" * 499 + "0"}
        record_["digests"] = record_["digests"] | {"evaluation": "wide"}
    assert against_controls.section([*runs(), *more], FIGURES)[1].startswith("Suite `wide`, 500 queries: ")
    assert against_controls.section([*runs(), more[0]], FIGURES)[1].startswith(QUICK)
