"""What the text of chapter 6 says of complete trainings is what their records hold."""

import pandas as pd
import pytest

from dml.common.files import ROOT
from dml.config.load import load
from dml.pipeline import paths
from dml.pipeline.stages.dependence import study_table
from dml.reporting import records
from dml.reporting.paired import in_r1, same_queries
from dml.reporting.records import Record, eps_key
from dml.reporting.tables import collapsed, comparison

LOSSES = ["contrastive", "triplet", "margin"]  # on tuples


@pytest.fixture(scope="module")
def held() -> list[Record]:
    """Those of the study on glyphs_long."""
    found = records.read(ROOT / paths.RECORDS / "glyphs_long")
    return [record for record in found if record["suite"] == "study"]


@pytest.fixture(scope="module")
def board(held: list[Record]) -> pd.DataFrame:
    figures = load().figures
    return comparison(held, figures.eps, figures).set_index(["loss", "defense"])


def fell(held: list[Record], loss: str, defense: str) -> bool:
    """Whether a training collapsed."""
    own = [record for record in held if (record["loss"], record["defense"]) == (loss, defense)]
    assert own
    return any(map(collapsed, own))


@pytest.mark.parametrize("loss", LOSSES)
def test_anchors_leave_more_than_other_roles(loss: str, board: pd.DataFrame) -> None:
    left = board["r1"][loss]
    assert left["robust_anchor"] > max(left["robust"], left["robust_negative"])


def verdict(held: list[Record], loss: str, first: str, second: str) -> str:
    """Whether the first defence is ahead of the second in R@1, query by query."""
    key = eps_key(load().figures.eps)
    found = in_r1(same_queries(held, (loss, first), (loss, second), key), key)
    assert found, f"{first} and {second} met no query in common"
    return found.verdict


@pytest.mark.parametrize("loss", LOSSES)
def test_of_images_that_move_in_one_role_anchors_leave_most_and_negatives_least(loss: str, held: list[Record]) -> None:
    assert verdict(held, loss, "joint_anchor", "joint_positive") == "holds"
    assert verdict(held, loss, "joint_positive", "joint_negative") == "holds"


@pytest.mark.parametrize("loss", LOSSES)
def test_sharing_matters_where_the_role_is_the_negative(loss: str, held: list[Record]) -> None:
    assert verdict(held, loss, "robust", "robust_image") == "not separated"
    assert verdict(held, loss, "robust", "joint_positive") == "not separated"
    shared = verdict(held, loss, "robust_negative", "robust_image_negative")
    assert shared == ("not separated" if loss == "margin" else "holds")
    assert verdict(held, loss, "robust_negative", "joint_negative") == "holds"


def test_three_roles_are_a_task_too_hard(board: pd.DataFrame) -> None:
    for loss in ("contrastive", "triplet"):
        own = board.loc[loss]
        assert own["natural"]["robust_all"] < 0.85 < 0.9 < own["natural"]["robust_image_all"], loss
        assert own["r1"]["robust_all"] < own["r1"]["robust_image_all"] < own["r1"]["joint"], loss
    assert board["r1"]["margin"][["robust_all", "robust_image_all"]].max() == 0
    for loss in LOSSES:
        assert board["r1"][loss][["joint", "joint_after", "joint_each"]].min() > board["r1"][loss]["robust"], loss


def test_at_the_large_radius_joint_training_fails_with_tuples_alone(held: list[Record], board: pd.DataFrame) -> None:
    assert [fell(held, loss, "joint_20") for loss in LOSSES] == [True, True, False]
    assert board["r1"]["margin"]["joint_20"] < 0.02, "hardly a query"
    for loss in LOSSES:
        assert board["r1"][loss]["robust_20"] > board["r1"][loss]["robust"]
    assert not fell(held, "triplet", "robust_image_20")
    assert abs(board["r1"]["triplet"]["robust_image_20"] - board["r1"]["triplet"]["robust_20"]) < 0.05
    assert fell(held, "triplet", "amd_20")


def test_what_amd_ruins_depends_on_the_data(held: list[Record], board: pd.DataFrame) -> None:
    own = board.loc["triplet"]
    assert own["natural"]["amd"] < 0.95 < 0.98 < own["natural"]["amd_turns"]
    assert own["r1"]["amd"] < own["r1"]["joint"]
    assert own["r1"]["amd_turns"] > 0.9
    assert sum(record["defense"] == "amd_turns" for record in held) == 1


def test_on_signs_from_random_weights_amd_and_joint_collapse_and_others_train() -> None:
    figures = load().figures
    held = [r for r in records.read(ROOT / paths.RECORDS / "gtsrb_random") if r["suite"] == "wide"]
    found = [record for record in held if record["loss"] == "triplet"]
    assert len({record["defense"] for record in found}) == len(found)
    fallen = {record["defense"] for record in found if collapsed(record)}
    assert fallen == {"amd", "joint"}
    left = comparison(found, figures.eps, figures).set_index("defense")["r1"].to_dict()
    apart = {record["defense"]: record["embedding"]["ratio"] for record in found}
    assert apart["robust"] > 0.95
    assert max(left[name] for name in ("robust", "amd", "joint")) < 0.05
    train = {name for name in left if apart[name] < 0.6 and left[name] > 2 * left["robust"]}
    assert train == {"best", "ca_tride", "est", "fare", "hardness", "nearest"}


def test_with_whole_queries_it_costs_something_and_ruins_nothing(held: list[Record], board: pd.DataFrame) -> None:
    own = board.loc["multi_similarity"]
    assert own["natural"]["joint_20"] > 0.95
    assert 0.75 < own["r1"]["joint_20"] < own["r1"]["robust_query_20"]
    assert own["r1"]["joint"] > own["r1"]["robust_query"]
    assert not fell(held, "multi_similarity", "joint_20")
    seeds = {name: sum(r["defense"] == name and r["loss"] == "multi_similarity" for r in held) for name in own.index}
    assert {seeds[name] for name in ("joint", "joint_20", "robust_query", "robust_query_20")} == {3}


def test_the_page_lists_what_the_records_are() -> None:
    """It is written by the pipeline; records that are made elsewhere come to it by hand."""
    page = (ROOT / "results/dependence/README.md").read_text(encoding="utf-8").splitlines()
    lines = study_table(workspace=".")
    first = page.index(lines[1])
    assert page[first : first + len(lines) - 1] == lines[1:]
