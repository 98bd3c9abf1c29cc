"""Suites: what each kind attacks, and that the strong one is at least as strong as its parts."""

import numpy as np
import pytest
import torch

from dml.attacks.peer import INSTALLED
from dml.data import Split
from dml.evaluation import comparison
from dml.evaluation.collapse import diagnostics
from dml.evaluation.suites import SUITES, Auto, Paper, Poisoning
from dml.evaluation.suites.poisoning import nearest_items
from dml.models.embedder import build
from dml.retrieval.index import Gallery, Search


@pytest.fixture
def search(toy_split: Split) -> Search:
    return Search.over(build("conv4", 8, seed=0, **toy_split.statistics()), toy_split)


def silent(line: str) -> None:
    """Progress is not looked at here."""


@pytest.mark.parametrize("kind", sorted(SUITES))
def test_every_kind_refuses_settings_that_make_no_sense(kind: str) -> None:
    with pytest.raises(ValueError, match=r"eps is -0\.1; it should be at least 0"):
        SUITES[kind](queries=3, eps=(-0.1,))
    with pytest.raises(ValueError, match="queries is 0"):
        SUITES[kind](queries=0, eps=(0.1,))
    with pytest.raises(ValueError, match="eps is empty"):
        SUITES[kind](queries=1, eps=())


def test_auto_leaves_at_most_what_any_of_its_parts_leaves(search: Search) -> None:
    rows, eps = np.arange(36), (0.01,)
    effort = {"margin_steps": 10, "targeted_steps": 10, "cross_entropy_steps": 10, "square_tries": 30, "targets": 3}
    auto = Auto(queries=36, eps=eps, **effort).evaluate(search, rows, seed=0, report=silent).outcomes
    worst = auto[auto["attack"] == "worst"].set_index("query")["r1"]
    table = comparison.compare(search, rows, 0.01, steps=10, seed=0).set_index("attack")
    assert worst.mean() <= table.loc[table.index != "worst", "r1"].min() + 0.06
    assert table.loc["none", "r1"] >= table["r1"].max()
    assert table.loc["worst", "r1"] <= table.drop("worst")["r1"].min()
    names = list(table.index)
    assert names[0] == "none"
    assert ("adversarial-library APGD on CE" in names) == INSTALLED


def test_more_steps_leave_less(search: Search) -> None:
    curve = comparison.by_steps(search, np.arange(36), 0.01, [1, 20], seed=0)
    assert curve["r1"].iloc[1] <= curve["r1"].iloc[0]
    assert (curve["r1_low"] <= curve["r1"]).all()


def test_a_larger_radius_leaves_less(search: Search) -> None:
    curve = comparison.by_eps(search, np.arange(36), [0.0, 0.01, 0.5], steps=20, seed=0)
    natural = search.natural().r1.double().mean().item()
    assert curve["r1"].iloc[0] == pytest.approx(natural), "nothing moves in a ball of radius 0"
    assert curve["r1"].is_monotonic_decreasing
    assert curve["r1"].iloc[-1] == 0


def test_the_papers_attacks_each_meet_all_queries(search: Search) -> None:
    suite = Paper(queries=12, eps=(0.02,), carlini_wagner_steps=10)
    outcomes = suite.evaluate(search, np.arange(12), seed=0, report=silent).outcomes
    left = outcomes.pivot_table(index="query", columns="attack", values="r1")
    assert set(left) == {"none", "fgsm", "r_fgsm", "pgd", "carlini_wagner", "worst"}
    assert (left["worst"] == left.drop(columns="worst").min(axis=1)).all()


def test_poisoning_perturbs_the_item_and_not_the_query(search: Search) -> None:
    outcomes = (
        Poisoning(queries=12, eps=(0.0, 0.5), items=3, steps=40)
        .evaluate(search, np.arange(12), seed=0, report=silent)
        .outcomes
    )
    left = outcomes[outcomes["attack"] != "none"].pivot_table(index="query", columns="eps", values="r1")
    natural = outcomes[outcomes["attack"] == "none"].set_index("query")["r1"]
    assert (left[0.0] == natural).all()
    assert left[0.5].mean() < 0.2, "an item that may change at will is found first"


def test_the_poisoned_item_is_the_nearest_of_its_class() -> None:
    draw = torch.Generator().manual_seed(0)
    gallery = Gallery(torch.randn(12, 4, generator=draw), torch.arange(12) % 3)
    points = torch.randn(5, 4, generator=draw)
    classes = torch.tensor([[1, 2], [0, 2], [0, 1], [2, 1], [1, 0]])
    found = nearest_items(points, classes, gallery)
    for row in range(5):
        for rank in range(2):
            items = (gallery.labels == classes[row, rank]).nonzero().flatten()
            assert found[row, rank] == items[(gallery.embeddings[items] @ points[row]).argmax()]


def test_collapse_is_told_by_the_spectrum() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 6
    spread = Gallery(torch.nn.functional.normalize(torch.randn(60, 8, generator=draw), dim=1), labels)
    line = torch.zeros(60, 8)
    line[:, 0], line[:, 1] = 1, torch.linspace(-0.01, 0.01, 60)
    collapsed = Gallery(torch.nn.functional.normalize(line, dim=1), labels)
    tight = Gallery(torch.eye(8)[labels], labels)
    assert diagnostics(spread)["effective_rank"] > 6
    assert diagnostics(spread)["ratio"] == pytest.approx(1, abs=0.1)
    assert diagnostics(collapsed)["effective_rank"] < 1.1
    assert diagnostics(collapsed)["inter"] < 0.02
    assert diagnostics(tight)["ratio"] == 0
    assert diagnostics(tight)["effective_rank"] == pytest.approx(5, abs=1e-6), "six corners span five directions"


def test_small_classes_have_pairs_too() -> None:
    gallery = Gallery(torch.nn.functional.normalize(torch.randn(6000, 4), dim=1), torch.arange(6000) // 3)
    assert 0.5 < diagnostics(gallery)["intra"] < 2


def test_a_few_large_classes_are_told_apart() -> None:
    gallery = Gallery(torch.eye(3)[torch.arange(9000) // 4500], torch.arange(9000) // 4500)
    assert diagnostics(gallery)["inter"] == pytest.approx(2**0.5)
    assert diagnostics(gallery)["ratio"] == 0


def test_map_left_is_at_most_natural(search: Search) -> None:
    natural, left = comparison.map_left(search, np.arange(36), 0.02, steps=5, seed=0)
    assert natural == pytest.approx(float(search.natural().map_r.mean()), abs=1e-6)
    assert left < natural
