"""Verdicts on the claims of the paper."""

from typing import Any

import pandas as pd
import pytest
from made_records import EPS, FIGURES, GATE, record, six

from dml.reporting import claims, paper, tables


def judge(runs: list[dict[str, Any]]) -> dict[str, claims.Verdict]:
    """Verdicts by a word of the claim."""
    words = ("lose", "5 times", "0.95", "beat", "control")
    found = claims.verdicts(runs, EPS, FIGURES)
    return {next(word for word in words if word in row.claim): row for row in found}


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
    found = judge([record("triplet", "standard", 0.9, standard), record("triplet", "robust", 0.9, robust)])
    assert found["5 times"][1:] == (measured, verdict)


def test_verdicts_say_what_fails() -> None:
    runs = six()
    found = judge(runs)
    assert found["lose"] == (
        "`standard` models lose more than half of their natural R@1 at eps 8/255",
        "contrastive 0.900 to 0.000; triplet 0.900 to 0.050",
        "holds",
    )
    assert found["5 times"][1:] == ("contrastive at least 25.9; triplet 10.0 (6.5 to 15.5)", "holds")
    assert found["0.95"][1:] == ("contrastive 0.889; triplet 0.978", "holds in part"), "contrastive keeps too little"
    assert found["beat"][1:] == (
        "contrastive 0.250 against 0.245, p 0.5000; triplet 0.500 against 0.200, p < 0.0001",
        "not separated",
    ), "two queries of 400 tell the contrastive models apart"
    assert "control" not in found
    runs[5] = record("contrastive", "single_step", 0.89, 106)
    assert judge(runs)["beat"].verdict == "fails", "six queries survive under single_step only, none under robust only"


def test_models_that_met_other_queries_do_not_beat_each_other() -> None:
    runs = [*six(), record("none", "pixels_8", 0.3, 10, seed=1)]
    assert "control" not in judge(runs)
    fewer = [made | {"survival": {"0.031373": "1"}} if made["defense"] == "single_step" else made for made in six()]
    assert "beat" not in judge(fewer)


def test_close_models_are_separated_where_they_differ_on_the_same_queries() -> None:
    """0.500 (0.451 to 0.549) and 0.480 (0.431 to 0.529): the intervals overlap, yet no query prefers the second."""
    found = judge([record("triplet", "robust", 0.9, 200), record("triplet", "single_step", 0.9, 192)])
    assert found["beat"][1:] == ("triplet 0.500 against 0.480, p 0.0078", "holds")


@pytest.mark.parametrize(
    ("survive", "chances", "verdict"),
    [
        (0, ("< 0.0001", "< 0.0001"), "holds"),
        (98, ("0.5000", "< 0.0001"), "not separated"),
        (100, ("1.0000", "< 0.0001"), "not separated"),
        (280, ("< 0.0001", "< 0.0001"), "fails"),
    ],
)
def test_robust_models_are_judged_beside_the_best_control(survive: int, chances: tuple[str, str], verdict: str) -> None:
    weak = record("none", "histogram", 0.9, 0)
    found = judge([*six(), weak, record("none", "pixels_8", 0.3, survive)])["control"]
    assert found.claim == "`robust` models keep more than the best control at eps 8/255"
    share = f"{survive / 400:.3f}"
    name = "pixels 8" if survive else "histogram"
    first, second = (f"against {share}, p {chance}" for chance in chances)
    assert found.measured == f"contrastive 0.250 {first}; triplet 0.500 {second} ({name})"
    assert found.verdict == verdict


def test_a_failed_gate_leaves_claims_about_that_model_unjudged() -> None:
    runs = [*six(), record("none", "pixels_8", 0.3, 10)]
    runs[1]["gates"] = [GATE | {"passed": False}]
    found = judge(runs)
    assert found["lose"].verdict == "holds", "it is about other models"
    assert found["0.95"].verdict == "holds in part", "natural scores need no gate"
    for name in ("5 times", "beat", "control"):
        assert found[name].verdict == "not judged"
        assert found[name].measured.endswith("; a gate does not hold")
    runs[1]["gates"], runs[-1]["gates"] = [GATE], []
    found = judge(runs)
    assert found["5 times"].verdict == "holds"
    assert found["control"][1:] == (
        "contrastive 0.250 against 0.025, p < 0.0001; triplet 0.500 against 0.025, p < 0.0001 (pixels 8); gates were "
        "not run",
        "not judged",
    )


def test_a_failed_gate_of_a_defence_that_no_claim_is_about_changes_nothing() -> None:
    other = record("triplet", "act", 0.9, 300, gates=[GATE | {"passed": False}])
    assert judge([*six(), other]) == judge(six())


def test_a_suite_that_no_claim_rests_on_judges_nothing() -> None:
    assert judge([made | {"claims": False, "gates": []} for made in six()]) == {}


def test_a_model_without_its_counterpart_changes_no_verdict() -> None:
    some = [made for made in six() if (made["loss"], made["defense"]) != ("contrastive", "robust")]
    assert judge(some)["0.95"][1:] == ("triplet 0.978", "holds")


def test_claims_are_about_the_defences_that_figures_names() -> None:
    other = type(FIGURES)(**vars(FIGURES) | {"paper": "single_step", "peer": "robust"})
    found = claims.verdicts(six(), EPS, other)
    assert found[3].claim == "`single_step` models beat `robust` ones at eps 8/255"
    assert found[3].verdict == "fails"


def test_the_finding_gives_the_best_model_beside_its_baseline_and_control() -> None:
    runs = [*six(), record("none", "pixels_8", 0.3, 10)]
    found = tables.comparison(runs, EPS, FIGURES)
    assert claims.finding(found, EPS, FIGURES) == (
        "At eps 8/255, R@1 is 0.500 (0.451 to 0.549) after robust training with the triplet loss; 0.050 after standard "
        "training; 0.025 for the best control (pixels 8)."
    )
    alone = found[found["defense"].eq("standard")]
    assert claims.finding(alone, EPS, FIGURES) == (
        "At eps 8/255, R@1 is 0.050 (0.033 to 0.076) after standard training with the triplet loss."
    )
    assert claims.finding(pd.DataFrame(found[found["loss"].eq("none")]), EPS, FIGURES) == ""


def test_the_page_judges_each_claim_of_the_paper_one_by_one() -> None:
    runs = [*six(), record("triplet", "joint", 0.9, 150), record("none", "pixels_8", 0.4, 30)]
    text = paper.claims_page({"toys": runs}, FIGURES)
    sections = text.split("\n## ")[1:]
    assert [section[0] for section in sections[:4]] == list("1234")
    assert "| toys | contrastive | 8/255 | 0.900 | 0.000 (0.000 to 0.010) | **holds** |" in sections[0]
    (joint,) = [line for line in sections[1].splitlines() if line.startswith("| toys")]
    assert joint.startswith("| toys | triplet | 8/255 | 0.500 (0.451 to 0.549) | 0.375 (0.329 to 0.423) | < 0.0001 |")
    assert joint.endswith("**holds** |")
    factor = next(line for line in sections[2].splitlines() if line.startswith("| toys | triplet"))
    assert "| 10.0 (6.5 to 15.5) | 0.075 (pixels 8) | **holds** |" in factor
    close = next(line for line in sections[3].splitlines() if line.startswith("| toys | contrastive"))
    assert close.endswith("| 0.5000 | **not separated** |"), "100 of 400 and 98 of 400, one within the other"
    assert "on cub200, cars196, sop: these need the official archives" in sections[4]


def test_a_claim_about_a_model_with_a_failed_gate_is_not_judged() -> None:
    runs = six()
    runs[1]["gates"] = [runs[1]["gates"][0] | {"passed": False}]
    text = paper.claims_page({"toys": runs}, FIGURES)
    for line in text.splitlines():
        if line.startswith("| toys | triplet") and "10.0" in line:
            assert line.endswith("| not judged |")
    assert "Not measured with the present settings and code." in text, "nothing is known of joint training"
