"""Verdicts on the claims of the paper."""

import re
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from made_records import EPS, FIGURES, GATE, record, six

from dml.evaluation.statistics import ratio_interval, wilson
from dml.reporting import claims, paper, sections, tables


def judge(runs: list[dict[str, Any]]) -> dict[str, claims.Verdict]:
    """Verdicts by a word of the claim."""
    words = ("lose", "5 times", "0.95", "beat `standard`", "beat `single_step`", "beat `joint`", "control")
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
    assert found["0.95"][1:] == (
        "contrastive 0.889 (0.856 to 0.922); triplet 0.978 (0.948 to 1.008)",
        "not shown",
    ), "contrastive keeps too little, triplet may keep too little"
    assert found["beat `standard`"] == (
        "`robust` models beat `standard` ones at eps 8/255",
        "contrastive 0.250 against 0.000, p < 0.0001; triplet 0.500 against 0.050, p < 0.0001",
        "holds",
    )
    assert found["beat `single_step`"][1:] == (
        "contrastive 0.250 against 0.245, p 0.5000; triplet 0.500 against 0.200, p < 0.0001",
        "holds in part",
    ), "two queries of 400 tell the contrastive models apart"
    assert found["control"][1:] == found["beat `joint`"][1:] == ("–", "not tested here")
    shared = judge([*runs, record("triplet", "joint", 0.9, 300)])["beat `joint`"]
    assert shared[1:] == ("triplet 0.500 against 0.750, p < 0.0001", "fails")
    runs[5] = record("contrastive", "single_step", 0.89, 106)
    assert judge(runs)["beat `single_step`"].verdict == "holds in part", (
        "contrastive: six queries survive under single_step only, none under robust only"
    )
    assert judge([run for run in runs if run["loss"] == "contrastive"])["beat `single_step`"].verdict == "fails"


def test_no_model_is_undefended_where_training_begins_with_robust_weights() -> None:
    runs = six()
    runs[0]["settings"] = runs[0]["settings"] | {"model": {"weights": "pretrained/grids.safetensors"}}
    for name in ("lose", "5 times"):
        usual, found = judge(six())[name], judge(runs)[name]
        assert usual.verdict != "not tested here"
        assert found == (usual.claim, f"{usual.measured}; training begins with robust weights", "not tested here")
    page = paper.claims_page({"toys": runs}, FIGURES)
    assert len(re.findall(r"^\| toys \| triplet \| 8/255 \| .* \| not tested here \|$", page, re.MULTILINE)) >= 2


def test_models_that_met_other_queries_do_not_beat_each_other() -> None:
    runs = [*six(), record("none", "pixels_8", 0.3, 10, seed=1)]
    assert judge(runs)["control"][1:] == ("–", "not tested here")
    fewer = [made | {"survival": {"0.031373": "1"}} if made["defense"] == "single_step" else made for made in six()]
    assert judge(fewer)["beat `single_step`"][1:] == ("–", "not tested here")


def test_close_models_are_separated_where_they_differ_on_the_same_queries() -> None:
    """0.500 (0.451 to 0.549) and 0.480 (0.431 to 0.529): the intervals overlap, yet no query prefers the second."""
    found = judge([record("triplet", "robust", 0.9, 200), record("triplet", "single_step", 0.9, 192)])
    assert found["beat `single_step`"][1:] == ("triplet 0.500 against 0.480, p 0.0078", "holds")


@pytest.mark.parametrize(
    ("survive", "chances", "verdict"),
    [
        (0, ("< 0.0001", "< 0.0001"), "holds"),
        (98, ("0.5000", "< 0.0001"), "holds in part"),
        (100, ("1.0000", "< 0.0001"), "holds in part"),
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
    robust = [made for made in runs if made["defense"] == "robust"]
    for made in robust:
        made["gates"] = [GATE | {"passed": False}]
    found = judge(runs)
    assert found["lose"].verdict == "holds", "it is about other models"
    assert found["0.95"].verdict == "not shown", "natural scores need no gate"
    about = ("5 times", "beat `standard`", "beat `single_step`", "control")
    for name in about:
        assert found[name].verdict == "not judged"
        assert found[name].measured.endswith("; a gate fails or was not run, or an embedding collapsed")
    robust[0]["gates"] = [GATE]
    for name in about:
        assert judge(runs)[name].verdict == "holds in part", "the other loss is judged by its own gates"
    robust[1]["gates"], runs[-1]["gates"] = [GATE], []
    found = judge(runs)
    assert found["5 times"].verdict == "holds"
    assert found["control"].verdict == "holds", "what is behind is so even if its attack failed"
    runs[-1] = record("none", "pixels_8", 0.9, 280, gates=[])
    assert judge(runs)["control"][1:] == (
        "contrastive 0.250 against 0.700, p < 0.0001; triplet 0.500 against 0.700, p < 0.0001 (pixels 8); a gate "
        "fails or was not run, or an embedding collapsed",
        "not judged",
    )


def test_a_failed_gate_of_a_defence_that_no_claim_is_about_changes_nothing() -> None:
    other = record("triplet", "act", 0.9, 300, gates=[GATE | {"passed": False}])
    assert judge([*six(), other]) == judge(six())


def test_a_suite_that_no_claim_rests_on_judges_nothing() -> None:
    assert judge([made | {"claims": False, "gates": []} for made in six()]) == {}


def test_a_model_without_its_counterpart_changes_no_verdict() -> None:
    some = [made for made in six() if (made["loss"], made["defense"]) != ("contrastive", "robust")]
    assert judge(some)["0.95"][1:] == ("triplet 0.978 (0.948 to 1.008)", "not shown")
    some = [made for made in six() if (made["loss"], made["defense"]) != ("contrastive", "standard")]
    assert judge(some)["0.95"][1:] == ("triplet 0.978 (0.948 to 1.008)", "not shown")
    assert judge(some)["5 times"][1:] == ("triplet 10.0 (6.5 to 15.5)", "holds")


def test_claims_are_about_the_defences_that_figures_names() -> None:
    other = type(FIGURES)(**vars(FIGURES) | {"paper": "single_step", "peer": "robust"})
    found = claims.verdicts(six(), EPS, other)
    assert found[5].claim == "`single_step` models beat `robust` ones at eps 8/255"
    assert found[5].verdict == "fails"


def test_the_finding_gives_the_best_model_beside_its_baseline_and_control() -> None:
    runs = [*six(), record("none", "pixels_8", 0.3, 10)]
    found = tables.comparison(runs, EPS, FIGURES)
    assert sections.finding(found, EPS, FIGURES) == (
        "At eps 8/255, R@1 is 0.500 (0.451 to 0.549) for `robust`, triplet loss; 0.050 for `standard`; 0.025 for the "
        "best control (pixels 8)."
    )
    alone = found[found["defense"].eq("standard")]
    assert sections.finding(alone, EPS, FIGURES) == (
        "At eps 8/255, R@1 is 0.050 (0.033 to 0.076) for `standard`, triplet loss."
    )
    assert sections.finding(pd.DataFrame(found[found["loss"].eq("none")]), EPS, FIGURES) == ""


def test_the_difference_of_natural_scores_by_a_published_example() -> None:
    """Newcombe (1998), table II: 56 of 70 and 48 of 80 differ by 0.2, from 0.0524 to 0.3339."""
    first, second = (
        SimpleNamespace(natural=right / images, images=images, natural_low=low, natural_high=high)
        for right, images in ((56, 70), (48, 80))
        for low, high in [wilson(right, images)]
    )
    kept = claims.natural_kept(first, second)
    assert kept[:3] == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert kept[3:] == pytest.approx((4 / 3, *ratio_interval(56, 70, 48, 80)))


@pytest.mark.parametrize(("robust", "verdict"), [(0.9, "holds"), (0.86, "not shown"), (0.6, "fails")])
def test_the_share_of_natural_scores_is_judged_by_its_interval(robust: float, verdict: str) -> None:
    runs = [record("triplet", "standard", 0.9, 20), record("triplet", "robust", robust, 200)]
    assert judge(runs)["0.95"].verdict == verdict


def test_the_page_judges_each_claim_of_the_paper_one_by_one() -> None:
    runs = [*six(), record("triplet", "joint", 0.9, 150), record("none", "pixels_8", 0.4, 30)]
    text = paper.claims_page({"toys": runs}, FIGURES)
    sections = text.split("\n## ")[1:]
    assert [section[0] for section in sections[:6]] == list("123456")
    assert "| toys | contrastive | 8/255 | 0.900 | 0.000 (0.000 to 0.010) | **holds** |" in sections[0]
    (joint,) = [line for line in sections[1].splitlines() if line.startswith("| toys | triplet | 8/255")]
    assert joint.startswith("| toys | triplet | 8/255 | 0.500 (0.451 to 0.549) | 0.375 (0.329 to 0.423) | < 0.0001 |")
    assert joint.endswith("**holds** |")
    assert "[Chapter 6](dependence/README.md)" in sections[2]
    assert (
        "| toys | triplet | 8/255 | 0.500 (0.451 to 0.549) | 0.050 (0.033 to 0.076) | < 0.0001 | **holds** |"
        in sections[2]
    )
    factor = next(line for line in sections[3].splitlines() if line.startswith("| toys | triplet | 8/255"))
    assert "| 10.0 (6.5 to 15.5) | 0.075 (pixels 8) | **holds** |" in factor
    close = next(line for line in sections[4].splitlines() if line.startswith("| toys | contrastive | 8/255"))
    assert close.endswith("| 0.5000 | **not separated** |"), "100 of 400 and 98 of 400, one within the other"
    natural = next(line for line in sections[5].splitlines() if line.startswith("| toys | triplet"))
    assert natural.startswith("| toys | triplet | 0.900 | 0.880 | -0.020 (")
    assert natural.endswith("| 0.978 (0.948 to 1.008) | **not shown** |")
    assert "on cub200, cars196, sop: these need the official archives" in sections[6]


def test_the_page_says_where_the_baseline_begins_with_weights_from_a_file() -> None:
    begun = [
        made | {"dataset": "others", "settings": {"model": {"weights": "some/where.safetensors"}}} for made in six()
    ]
    drawn = [made | {"settings": {"model": {"weights": "random"}}} for made in six()]
    before = paper.claims_page({"toys": drawn, "others": begun}, FIGURES).split("\n## ")[0]
    assert "On others all models, standard ones too, begin with the weights of `some/where.safetensors`," in before
    assert "begin with" not in paper.claims_page({"toys": drawn}, FIGURES)


def test_a_claim_that_nothing_tests_is_listed_as_such_for_each_loss() -> None:
    others = [made | {"dataset": "others"} for made in six()[:2]]
    runs = [*six(), record("triplet", "joint", 0.9, 150)]
    first, shared, whole, *_, peer, natural, _ = paper.claims_page({"toys": runs, "others": others}, FIGURES).split(
        "\n## "
    )[1:]
    assert "| toys | contrastive | 0.01, 8/255 | – | – | – | not tested here |" in shared
    assert "| toys | triplet | 0.01 | – | – | – | not tested here |" in shared, "it was at the other radius"
    assert "| others | triplet | 0.01, 8/255 | – | – | – | not tested here |" in shared
    assert "| others | triplet | 0.01, 8/255 | – | – | – | not tested here |" in peer
    assert "| others | triplet | 0.01 | – | – | not tested here |" in first
    assert "| others | triplet | 8/255 | 0.500" in whole
    assert "not tested here" not in natural
    alone = paper.claims_page({"others": others[:1]}, FIGURES).split("\n## ")[6]
    assert "| others | triplet | – | – | – | – | not tested here |" in alone
    quiet = [made | {"claims": False} for made in others]
    assert "| others | triplet | 0.01, 8/255 | – | – | not tested here |" in paper.claims_page(
        {"others": quiet}, FIGURES
    )


def test_a_claim_about_a_model_with_a_failed_gate_is_not_judged() -> None:
    runs = six()
    runs[1]["gates"] = [runs[1]["gates"][0] | {"passed": False}]
    text = paper.claims_page({"toys": runs}, FIGURES)
    lines = [line for line in text.splitlines() if line.startswith("| toys | triplet") and "0.500†" in line]
    assert len(lines) == 3
    for line in lines:
        assert line.endswith("| not judged |")


def test_the_page_of_claims_shows_r1_of_the_seeds_that_a_test_compares() -> None:
    runs = [record("triplet", "robust", 0.9, survive, seed=seed) for seed, survive in enumerate((200, 300, 340))]
    runs.append(record("triplet", "joint", 0.9, 250))
    section = paper.claims_page({"toys": runs}, FIGURES).split("\n## ")[2]
    assert (
        "| toys | triplet | 8/255 | 0.500 (0.451 to 0.549) | 0.625 (0.577 to 0.671) | < 0.0001 | **fails** |" in section
    )


def test_a_claim_that_holds_for_one_loss_alone_holds_in_part() -> None:
    runs = [record("triplet", "standard", 0.9, 20), record("triplet", "robust", 0.9, 200)]
    runs += [record("contrastive", "standard", 0.9, 100), record("contrastive", "robust", 0.9, 100)]
    assert judge(runs)["beat `standard`"].verdict == "holds in part"
    runs[1] = record("triplet", "robust", 0.9, 20)
    assert judge(runs)["beat `standard`"].verdict == "not separated", "for neither loss"


def test_other_training_radii_are_compared_where_all_else_is_the_same() -> None:
    def trained(name: str, survive: int, eps: float, **given: Any) -> dict[str, Any]:
        made = record("triplet", name, 0.9, survive)
        made["settings"] |= {"defense": {"name": name, "eps": eps, "steps": 3, **given}}
        return made

    runs = [
        trained("robust", 100, EPS),
        trained("joint", 150, EPS),
        trained("robust_20", 200, 20 / 255, defense="robust"),
    ]
    runs += [trained("joint_20", 40, 20 / 255, defense="joint"), trained("joint_12", 40, 12 / 255, defense="joint")]
    runs += [trained("other_20", 300, 20 / 255, defense="robust", target="anchor")]
    runs[3]["gates"] = [GATE | {"passed": False}]
    section = paper.claims_page({"toys": runs}, FIGURES).split("\n## ")[2]
    (line,) = [line for line in section.splitlines() if line.startswith("| toys | triplet | 20/255 |")]
    assert line.startswith("| toys | triplet | 20/255 | 8/255 | 0.500 (")
    assert "| 0.100† (" in line
    assert line.endswith("| < 0.0001 | **holds** |"), "the model behind may have a failed gate"
    assert "12/255" not in section


def test_what_the_start_of_a_training_does_as_well_is_owed_to_it() -> None:
    """Robust training is ahead of standard training, and of the start only if 6 of the 6 that differ are its own."""
    for kept, verdict in ((200, "owed to the start"), (195, "owed to the start"), (194, "holds"), (300, "owed to the")):
        runs = [record("triplet", "standard", 0.9, 100), record("triplet", "robust", 0.9, 200)]
        runs += [record("triplet", "start", 0.9, kept), record("none", "pixels_8", 0.9, 100)]
        for name in ("beat `standard`", "control"):
            found = judge(runs)[name]
            assert found.verdict.startswith(verdict)
            assert ("`start`, trained no further, is not behind" in found.measured) == (verdict != "holds")
        table = paper.claims_page({"toys": runs}, FIGURES).split("## 3.")[1].split("## 4.")[0]
        assert f"**{verdict}" in table
    behind = [record("triplet", "standard", 0.9, 300), record("triplet", "robust", 0.9, 200)]
    assert judge([*behind, record("triplet", "start", 0.9, 200)])["beat `standard`"].verdict == "fails"
    other = record("triplet", "start", 0.9, 200, queries=300)
    runs = [record("triplet", "standard", 0.9, 100), record("triplet", "robust", 0.9, 200), other]
    assert judge(runs)["beat `standard`"].verdict == "holds", "the start met other queries"


def test_a_loss_that_owes_its_lead_to_the_start_leaves_the_claim_in_part() -> None:
    runs = [record("triplet", "standard", 0.9, 100), record("triplet", "robust", 0.9, 250)]
    runs += [record("contrastive", "standard", 0.9, 100), record("contrastive", "robust", 0.9, 200)]
    found = judge([*runs, record("triplet", "start", 0.9, 200)])["beat `standard`"]
    assert found.verdict == "holds in part"
    assert found.measured.endswith("; `start`, trained no further, is not behind")


def test_a_perturbation_of_one_tuple_is_compared_with_one_that_tuples_share() -> None:
    def made(name: str, survive: int, **given: Any) -> dict[str, Any]:
        settings = {"model": {}, "defense": {"name": name, "defense": "robust", **given}}
        return record("triplet", name, 0.9, survive, settings=settings)

    runs = [made("robust", 200, eps=EPS), made("robust_image", 150, eps=EPS, scope="image")]
    runs += [made("robust_20", 200, eps=20 / 255), made("robust_image_20", 200, eps=20 / 255, scope="image")]
    part = paper.claims_page({"toys": runs}, FIGURES).split("*in that tuple alone*")[1].split("## 4.")[0]
    rows = [line for line in part.splitlines() if line.startswith("| toys")]
    shown = "0.500 (0.451 to 0.549) | 0.375 (0.329 to 0.423) | < 0.0001 | **holds** |"
    assert rows[0] == f"| toys | triplet | 8/255 | 8/255 | {shown}"
    assert [row.split(" | ")[2:4] for row in rows[1:]] == [["20/255", "8/255"]], "at the radius of either training"
    assert rows[1].endswith("| **not separated** |")
    alone = paper.claims_page({"toys": runs[:1]}, FIGURES)
    assert "*in that tuple alone*" not in alone


def test_the_peer_as_its_authors_published_it_stands_below_the_peer_of_the_paper() -> None:
    def made(name: str, survive: int, eps: float = EPS, **given: Any) -> dict[str, Any]:
        settings = {"model": {}, "defense": {"name": name, "eps": eps, **given}}
        return record("triplet", name, 0.9, survive, settings=settings)

    runs = [made("robust", 200), made("visual_phish_net", 150), made("robust_20", 220, 20 / 255, defense="robust")]
    runs.append(made("visual_phish_net_20", 220, 20 / 255, defense="visual_phish_net"))
    runs.append(made("visual_phish_net_12", 220, 12 / 255, defense="visual_phish_net"))
    part = paper.claims_page({"toys": runs}, FIGURES).split("perturbs without the hinge")[1].split("## 6.")[0]
    rows = [line.split(" | ") for line in part.splitlines() if line.startswith("| toys")]
    assert [(row[2], row[7].strip(" |")) for row in rows] == [("8/255", "**holds**"), ("20/255", "**not separated**")]
    assert "perturbs without the hinge" not in paper.claims_page({"toys": runs[:1]}, FIGURES)


def test_a_gate_counts_only_where_the_verdict_rests_on_it() -> None:
    failed = [GATE | {"passed": False}]
    behind = [record("triplet", "robust", 0.9, 100, gates=failed), record("triplet", "joint", 0.9, 200)]
    assert judge(behind)["beat `joint`"].verdict == "fails", "lower still were it attacked better"
    assert paper.claims_page({"toys": behind}, FIGURES).count("| < 0.0001 | **fails** |") == 1
    behind[1]["gates"] = failed
    assert judge(behind)["beat `joint`"].verdict == "not judged"
    runs = [record("triplet", "standard", 0.9, 20, gates=failed), record("triplet", "robust", 0.9, 300)]
    assert judge(runs)["lose"].verdict == judge(runs)["5 times"].verdict == "holds", "the baseline is no better"
    alone = record("contrastive", "standard", 0.9, 20, gates=failed)
    held = [record("triplet", "standard", 0.9, 20), record("triplet", "robust", 0.9, 300), alone]
    assert judge(held)["5 times"].verdict == "holds", "no model of that loss is compared"


def test_what_is_shown_beside_a_test_is_of_the_seeds_that_it_compares() -> None:
    runs = [record("triplet", "robust", 0.9, survive, seed=seed) for seed, survive in enumerate((200, 200, 320))]
    runs += [record("triplet", "single_step", 0.9, 100, seed=seed) for seed in range(2)]
    assert judge(runs)["beat `single_step`"].measured.startswith("triplet 0.500 against 0.250, p ")


def test_for_a_loss_on_whole_queries_the_defence_of_the_paper_perturbs_each_query() -> None:
    runs = [record("multi_similarity", name, 0.9, n) for name, n in {"standard": 10, "robust_query": 200}.items()]
    (found,) = (row for row in claims.judged(runs, FIGURES) if "5 times" in row.claim and row.claim.endswith("8/255"))
    assert found.measured.startswith("multi_similarity 20.0 (")
    assert found.verdict == "holds"
    page = paper.claims_page({"toys": runs}, FIGURES)
    assert "robust is `robust_query`, an extension made here: it perturbs each query." in page
    assert re.search(r"\| toys \| multi similarity \| 8/255 \| .* \| 20\.0 \(.*\*\*holds\*\* \|", page)
    both = [*runs, record("multi_similarity", "robust", 0.9, 15)]
    (found,) = (row for row in claims.judged(both, FIGURES) if "5 times" in row.claim and row.claim.endswith("8/255"))
    assert found.measured.startswith("multi_similarity 1.5 ("), "where the paper's own was trained, it counts"
