"""Suites: what each kind attacks, and that a strong list of attacks is at least as strong as its parts."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from dml.attacks.balls import Linf
from dml.attacks.objectives.base import FOOLS, Objective
from dml.attacks.queries import soft_margin
from dml.attacks.queries.margin import Margin
from dml.attacks.queries.peer import INSTALLED
from dml.common.table import find
from dml.data.base import Split
from dml.evaluation.collapse import diagnostics
from dml.evaluation.controls import Pixels8
from dml.evaluation.suites import SUITES, attacks, poisoning
from dml.evaluation.suites.attacks import AttackSuite
from dml.evaluation.suites.base import Suite
from dml.evaluation.suites.poisoning import Poisoning, nearest_items
from dml.evaluation.suites.with_groups import WithGroupsSuite
from dml.models.autocast import Autocast
from dml.models.embedder import build
from dml.retrieval.gallery import Gallery, Queries
from dml.retrieval.index import Search

STRONG = {
    "margin": {"steps": 10},
    "targeted": {"steps": 10, "classes": 3},
    "cross_entropy": {"steps": 10},
    "square": {"tries": 30},
}
SINGLE = {
    "noise": {},
    "nes": {"steps": 2},
    "fgsm on margin": {"attack": "fgsm", "objective": "margin"},
    "embedding_shift": {"steps": 10},
    "metric_loss": {"steps": 10},
    "margin_pgd": {"steps": 10},
    "dlr": {"steps": 10},
    **({"peer": {"steps": 10}} if INSTALLED else {}),
    "margin": {"steps": 10, "first": 0},
}

LISTS = ("attacks", "with_groups")  # kinds that are lists of attacks


@pytest.fixture
def search(toy_split: Split) -> Search:
    return Search.over(build("conv4", 8, seed=0, statistics=toy_split.statistics()), toy_split)


def silent(line: str) -> None:
    """Progress is not looked at here."""


def suite_of(kind: str, **settings: object) -> Suite:
    return find(SUITES, kind, "suite")(**settings, **({"attacks": {"fgsm": {}}} if kind in LISTS else {}))


@pytest.mark.parametrize("kind", sorted(SUITES))
def test_every_kind_refuses_settings_that_make_no_sense(kind: str) -> None:
    with pytest.raises(ValueError, match=r"eps is -0\.1; it must be at least 0"):
        suite_of(kind, queries=3, eps=(-0.1,))
    with pytest.raises(ValueError, match="queries is 0"):
        suite_of(kind, queries=0, eps=(0.1,))
    with pytest.raises(ValueError, match="eps is empty"):
        suite_of(kind, queries=1, eps=())
    suite = suite_of(kind, queries=1, eps=(0.1,))
    assert not suite.claims
    assert (suite.doubled() is None) or kind in LISTS


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ({}, "attacks is empty"),
        ({"margn": {}}, "attacks.margn: attack 'margn' is unknown; did you mean 'margin'"),
        ({"mine": {"attack": "pdg"}}, "attacks.mine: attack 'pdg' is unknown; did you mean 'pgd'"),
        ({"margin": {"step": 3}}, "attacks.margin key 'step' is unknown; did you mean 'steps'"),
        ({"margin": {"steps": "many"}}, "attacks.margin.steps is 'many'"),
        ({"margin": {"steps": 0}}, "attacks.margin.steps is 0; it must be at least 1"),
        ({"fgsm": {"objective": "margins"}}, "attacks.fgsm.objective is 'margins'"),
        ({"worst": {"attack": "pgd"}}, "attacks.worst is a name that the outcomes use"),
    ],
)
def test_a_wrong_list_of_attacks_is_refused(attacks: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttackSuite(1, (0.1,), attacks)


def test_a_strong_list_leaves_at_most_what_any_single_attack_leaves(search: Search) -> None:
    rows, eps = np.arange(36), (0.003,)
    strong = AttackSuite(36, eps, STRONG).evaluate(search, rows, seed=0, report=silent).outcomes
    single = AttackSuite(36, eps, SINGLE, alone=True).evaluate(search, rows, seed=0, report=silent).outcomes
    left = single.groupby("attack")["r1"].mean()
    assert set(left.index) == {"none", "worst", *SINGLE}
    worst = strong[strong["attack"] == "worst"]["r1"].mean()
    assert worst <= left.drop("worst").min() + 0.06
    assert 0 < worst < left["none"]
    assert left["none"] >= left.max()
    assert left["worst"] <= left.drop("worst").min()
    assert left["margin"] < left["noise"]


def test_more_steps_and_larger_radii_leave_less(search: Search) -> None:
    attacks = {f"{steps} steps": {"attack": "margin", "steps": steps, "first": 0} for steps in (1, 20)}
    suite = AttackSuite(36, (0.0, 0.003, 0.5), attacks, alone=True)
    left = suite.evaluate(search, np.arange(36), seed=0, report=silent).outcomes
    left = left.pivot_table(index="attack", columns="eps", values="r1")
    assert left.loc["20 steps", 0.003] < left.loc["1 steps", 0.003]
    natural = search.natural().r1.double().mean().item()
    assert left.loc["worst", 0.0] == pytest.approx(natural), "nothing moves in a ball of radius 0"
    assert left.loc["worst"].is_monotonic_decreasing
    assert left.loc["worst", 0.5] == 0


def test_the_doubled_suite_has_twice_the_steps_and_no_black_box() -> None:
    attacks = {"mine": {"attack": "margin", "steps": 7}, "square": {"tries": 5}, "fgsm": {}}
    suite = AttackSuite(3, (0.1,), attacks, claims=True)
    doubled = suite.doubled()
    assert doubled.named == {"mine": Margin(steps=14)}
    assert (doubled.eps, doubled.queries) == (suite.eps, suite.queries)
    assert AttackSuite(3, (0.1,), {"square": {}}).doubled() is None


def test_layers_in_bfloat16_look_for_images_that_float32_judges(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attacks, "computed", lambda device: True)
    dtypes = set()
    search.model.backbone.register_forward_hook(lambda module, images, features: dtypes.add(features.dtype))
    suite = AttackSuite(36, (0.003,), {"margin": {"steps": 10}}, claims=True, precision="bfloat16")
    outcomes = suite.evaluate(search, np.arange(36), seed=0, report=silent).outcomes
    assert dtypes == {torch.float32, torch.bfloat16}
    exact = replace(suite, precision="float32").evaluate(search, np.arange(36), seed=0, report=silent).outcomes
    natural = [found[found["attack"] == "none"] for found in (outcomes, exact)]
    pd.testing.assert_frame_equal(*natural)
    left = [found[found["attack"] == "worst"]["r1"].mean() for found in (outcomes, exact)]
    assert left[0] == pytest.approx(left[1], abs=0.09)
    assert left[0] < natural[0]["r1"].mean()
    dtypes.clear()
    suite.doubled().evaluate(search, np.arange(6), seed=0, report=silent)
    assert dtypes == {torch.float32}, "a gate does not trust in bfloat16"
    monkeypatch.setattr(attacks, "computed", lambda device: False)
    fallen_back = suite.evaluate(search, np.arange(36), seed=0, report=silent).outcomes
    assert dtypes == {torch.float32}, "a device that does not compute in bfloat16 takes float32"
    pd.testing.assert_frame_equal(fallen_back, exact)


def test_bfloat16_leaves_float64_as_it_is(toy_split: Split) -> None:
    search = Search.over(Pixels8(), toy_split)
    found = [
        AttackSuite(9, (0.003,), {"margin": {"steps": 3}}, precision=precision)
        .evaluate(search, np.arange(9), seed=0, report=silent)
        .outcomes
        for precision in ("float32", "bfloat16")
    ]
    pd.testing.assert_frame_equal(*found)


def test_bfloat16_is_of_the_layers_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)).eval()
    images = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found, exact = Autocast(model)(images), model(images)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0.02)


def test_a_query_leaves_soft_margin_once_it_is_clearly_broken() -> None:
    """A quarter of the way past the border, and by more than coarse layers err; what they see broken, never."""
    model, start = nn.Identity(), torch.tensor([-0.4, -0.004, 0.0, FOOLS + 0.1])
    beyond = soft_margin._enough(start, model) - FOOLS
    torch.testing.assert_close(beyond, torch.tensor([0.1, 0.001, torch.inf, torch.inf]), atol=1e-4, rtol=0)
    beyond = soft_margin._enough(start, Autocast(model)) - FOOLS
    torch.testing.assert_close(beyond, torch.tensor([0.1, 0.01, torch.inf, torch.inf]), atol=1e-4, rtol=0)


def test_an_attack_keeps_its_random_starts_whatever_comes_before_it(search: Search) -> None:
    """Groups are named, so the generators do not depend on the list."""
    both = AttackSuite(12, (0.003,), {"fgsm": {}, "pgd": {}}, alone=True)
    one = AttackSuite(12, (0.003,), {"pgd": {}}, alone=True)
    found = [suite.evaluate(search, np.arange(12), seed=0, report=silent).outcomes for suite in (both, one)]
    first, second = (table[table["attack"] == "pgd"].reset_index(drop=True) for table in found)
    assert first.equals(second)


class Sure(nn.Module):
    """Claims a certificate for even queries."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images)

    def certify(self, search: Search, rows: np.ndarray, norm: str, eps: float) -> Tensor:
        assert norm == "linf"
        return torch.from_numpy(rows % 2 == 0) & (eps < 0.1)


def test_a_model_with_certificates_gets_rows_for_them(search: Search) -> None:
    sure = Search(Sure(search.model), search.split, search.gallery, search.query_split)
    suite = AttackSuite(4, (0.05, 0.2), {"fgsm": {}})
    outcomes = suite.evaluate(sure, np.array([4, 1, 2, 3]), seed=0, report=silent).outcomes
    found = outcomes[outcomes["attack"] == "certified"]
    assert found["query"].tolist() == [4, 1, 2, 3] * 2
    assert found["r1"].tolist() == [1, 0, 1, 0] + [0] * 4
    assert found["eps"].tolist() == [0.05] * 4 + [0.2] * 4
    plain = suite.evaluate(search, np.arange(2), seed=0, report=silent).outcomes
    assert "certified" not in set(plain["attack"])


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


def test_what_poisoning_breaks_is_broken_at_larger_radii(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    found = poisoning.apgd

    def early(images: Tensor, objective: Objective, ball: Linf, **settings: Any) -> Tensor:
        """Finds the answer in the small ball only."""
        return images if ball.eps > 0.4 else found(images, objective, ball, **settings)

    monkeypatch.setattr(poisoning, "apgd", early)
    suite = Poisoning(queries=12, eps=(0.5, 0.3), items=3, steps=40)
    outcomes = suite.evaluate(search, np.arange(12), seed=0, report=silent).outcomes
    left = outcomes.pivot_table(index="query", columns="eps", values="r1")
    assert left[0.3].sum() < left[0.0].sum()
    assert left[0.5].tolist() == left[0.3].tolist()
    assert outcomes["eps"].unique().tolist() == [0.0, 0.5, 0.3], "in the suite's order"


def test_poisoning_works_with_queries_apart_from_the_gallery(toy_split: Split) -> None:
    halves = [
        Split(toy_split.images[part::2], toy_split.labels[part::2], toy_split.class_names, np.arange(18) // 2)
        for part in (0, 1)
    ]
    search = Search.over(build("conv4", 8, seed=0, statistics=toy_split.statistics()), *halves)
    suite = Poisoning(queries=18, eps=(0.0, 0.5), items=2, steps=40)
    outcomes = suite.evaluate(search, np.arange(18), seed=0, report=silent).outcomes
    natural = outcomes[outcomes["attack"] == "none"]
    np.testing.assert_array_equal(natural["r1"], search.natural().r1.numpy())
    left = outcomes[outcomes["attack"] == "worst"].groupby("eps")["r1"].mean()
    assert left[0.0] == natural["r1"].mean()
    assert left[0.5] < 0.3


def test_the_poisoned_item_is_the_nearest_of_its_class_outside_the_querys_group() -> None:
    draw = torch.Generator().manual_seed(0)
    gallery = Gallery(torch.randn(12, 4, generator=draw), torch.arange(12) % 3, torch.arange(12) // 2)
    queries = Queries(torch.tensor([0, 1, 2, 0, 2]), torch.tensor([0, 1, 2, -1, -1]), torch.tensor([0, 2, 4, -1, -1]))
    points = torch.randn(5, 4, generator=draw)
    classes = torch.tensor([[1, 2], [0, 2], [0, 1], [2, 1], [1, 0]])
    found = nearest_items(points, classes, queries, gallery)
    for row in range(5):
        for rank in range(2):
            counted = (gallery.labels == classes[row, rank]) & (gallery.groups != queries.groups[row])
            items = counted.nonzero().flatten()
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


@pytest.mark.parametrize("apart", [False, True])
def test_with_groups_is_the_same_suite_on_images_without_groups(toy_split: Split, apart: bool) -> None:
    model = build("conv4", 8, seed=0, statistics=toy_split.statistics())
    grouped = replace(toy_split, groups=np.arange(len(toy_split)) // 2)
    searches = [Search.over(model, split, replace(split) if apart else None) for split in (toy_split, grouped)]
    given, rows = {"queries": 6, "eps": (0.0, 0.02), "attacks": {"fgsm": {}, "map": {"steps": 2}}}, np.arange(6)
    plain, twins = AttackSuite(**given), WithGroupsSuite(**given)
    expected, found = (
        suite.evaluate(search, rows, seed=0, report=silent).outcomes
        for suite, search in zip((plain, twins), searches, strict=True)
    )
    pd.testing.assert_frame_equal(found, expected)
    assert found["r1"].sum() > 0
    left_out = plain.evaluate(searches[1], rows, seed=0, report=silent).outcomes
    assert not left_out["margin"].equals(expected["margin"]), "groups decide something here"
    assert [group.name for group in twins.runs(searches[1])] == ["fgsm", "map"]


def test_no_claim_rests_on_a_suite_with_groups() -> None:
    with pytest.raises(ValueError, match="claims is true; it must be false, since gates leave"):
        WithGroupsSuite(1, (0.1,), {"fgsm": {}}, claims=True)
