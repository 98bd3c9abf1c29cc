"""Objectives of attacks, against brute force."""

import math

import pytest
import torch
from conftest import LinearEmbedder
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dml.attacks.balls import Linf
from dml.attacks.objectives.base import FOOLS, TEMPERATURE
from dml.attacks.objectives.logits import class_logits, cross_entropy_objective, dlr_objective
from dml.attacks.objectives.margin import margin_objective, targeted_objective
from dml.attacks.objectives.ranks import map_objective, rank_objective
from dml.attacks.objectives.soft_margin import soft_margin_objective
from dml.attacks.objectives.tuples import embedding_shift_objective, metric_loss_objective, role_objective
from dml.attacks.optimisers.apgd import apgd
from dml.attacks.optimisers.pgd import value_and_gradient
from dml.retrieval.gallery import Gallery, Queries
from dml.retrieval.metrics import margin, per_query


class Sphere(nn.Module):
    """A fixed linear map to the unit sphere."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = LinearEmbedder(48, 6)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.inner(images), dim=1)


def problem(seed: int, count: int = 5) -> tuple[Sphere, Tensor, Queries, Gallery]:
    """Queries that are items 0.. of a gallery of five classes of four."""
    draw = torch.Generator().manual_seed(seed)
    model = Sphere()
    images = torch.rand(20, 3, 4, 4, generator=draw, dtype=torch.float64)
    labels = torch.randperm(20, generator=draw) % 5 * 3  # labels need not be 0, 1, 2
    gallery = Gallery(model(images).detach(), labels)
    rows = torch.arange(count)
    return model, images[:count], Queries(labels[:count], rows, rows), gallery


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_bridge_is_exact(seed: int) -> None:
    """The largest logit is the class of the nearest other item, so accuracy on the logits is R@1."""
    model, images, queries, gallery = problem(seed, count=20)
    logits, own = class_logits(model(images), queries, gallery)
    similarity = model(images) @ gallery.embeddings.T
    similarity.fill_diagonal_(-math.inf)
    for row in range(20):
        for column, label in enumerate(gallery.labels.unique()):
            assert logits[row, column] == similarity[row][gallery.labels == label].max()
    accuracy = logits.argmax(1) == own
    assert torch.equal(accuracy, per_query(model(images), queries, gallery).r1)
    assert torch.equal(accuracy, margin(model(images), queries, gallery) < 0)


def test_the_bridge_needs_the_class_in_the_gallery() -> None:
    model, images, _, gallery = problem(0)
    with pytest.raises(ValueError, match="no item of a query's class"):
        class_logits(model(images), Queries(torch.full((5,), 7), torch.full((5,), -1), torch.full((5,), -1)), gallery)


def test_cross_entropy_and_dlr_by_hand() -> None:
    model, images, queries, gallery = problem(3)
    logits, own = class_logits(model(images), queries, gallery)
    entropy = cross_entropy_objective(model, queries, gallery)(images)
    ratio = dlr_objective(model, queries, gallery)(images)
    for row in range(5):
        values = logits[row].tolist()
        right = values[own[row]]
        expected = math.log(sum(math.exp((value - right) / TEMPERATURE) for value in values))
        wrong = max(value for column, value in enumerate(values) if column != own[row])
        assert entropy[row].item() == pytest.approx(expected + FOOLS * (wrong >= right))
        first, _, third, *_ = sorted(values, reverse=True)
        assert ratio[row].item() == pytest.approx((wrong - right) / (first - third))
    two = Gallery(gallery.embeddings[:4], torch.tensor([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="three classes"):
        dlr_objective(model, Queries(torch.tensor([0]), torch.tensor([0]), torch.tensor([0])), two)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_soft_rank_has_the_exact_value_and_a_gradient_that_lowers_it(seed: int) -> None:
    model, images, queries, gallery = problem(seed)
    objective = map_objective(model, queries, gallery)
    exact = per_query(model(images), queries, gallery).map_r
    torch.testing.assert_close(objective(images), -exact.double())
    found = apgd(images, objective, Linf(0.3), steps=20, generator=torch.Generator().manual_seed(0))
    after = per_query(model(found), queries, gallery).map_r
    torch.testing.assert_close(objective(found), -after.double())
    assert after.mean() < 0.5 * exact.mean() or exact.mean() == 0


def test_items_of_different_classes_have_different_numbers_of_matches() -> None:
    """The soft rank pads: a query of a small class must not feel the places of a large one."""
    model, images, _, gallery = problem(5)
    gallery = Gallery(gallery.embeddings, torch.tensor([0, 0, 1, 1, 1] + [2] * 15))
    queries = Queries(gallery.labels[:5], torch.arange(5), torch.arange(5))
    both = map_objective(model, queries, gallery)
    values = images.clone().requires_grad_(True)
    (together,) = torch.autograd.grad(both(values).sum(), values)
    for row in range(5):
        alone = images[row : row + 1].clone().requires_grad_(True)
        objective = map_objective(model, queries.take(torch.tensor([row])), gallery)
        (gradient,) = torch.autograd.grad(objective(alone).sum(), alone)
        torch.testing.assert_close(gradient[0], together[row])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_rank_objective_sees_the_ranking_alone(seed: int) -> None:
    model, images, queries, gallery = problem(seed)
    found = rank_objective(model, queries, gallery)(images)
    similarity = model(images) @ gallery.embeddings.T
    for row in range(5):
        order = [item for item in similarity[row].argsort(descending=True).tolist() if item != row]
        places = [place for place, item in enumerate(order, 2) if gallery.labels[item] == queries.labels[row]]
        assert float(found[row]) == pytest.approx(sum(map(math.log2, places)) / len(places))


def test_embedding_shift_and_metric_loss_by_hand() -> None:
    model, images, queries, gallery = problem(2)
    moved = (images + 0.05).clamp(0, 1)
    embeddings, home = model(moved).detach(), model(images).detach()
    torch.testing.assert_close(embedding_shift_objective(model, images)(moved), (embeddings - home).norm(dim=1))
    loss = metric_loss_objective(model, images, queries, gallery)(moved).detach()
    itself = metric_loss_objective(model, images, queries, gallery, "itself")(moved).detach()
    for row in range(5):
        apart = (home[row] - gallery.embeddings).norm(dim=1)
        same = gallery.labels == queries.labels[row]
        same[row] = False
        right = min(same.nonzero().flatten().tolist(), key=lambda item: float(apart[item]))
        other = (gallery.labels != queries.labels[row]).nonzero().flatten().tolist()
        wrong = min(other, key=lambda item: float(apart[item]))
        expected = (embeddings[row] - gallery.embeddings[right]).norm() - (
            embeddings[row] - gallery.embeddings[wrong]
        ).norm()
        assert float(loss[row]) == pytest.approx(float(expected))
        moved_by = (embeddings[row] - home[row]).norm()
        assert float(itself[row]) == pytest.approx(
            float(moved_by - (embeddings[row] - gallery.embeddings[wrong]).norm())
        )


def test_values_do_not_change_with_the_neighbours_in_the_batch() -> None:
    """Else "best point met" would mean nothing."""
    model, images, queries, gallery = problem(9)
    for build in (margin_objective, cross_entropy_objective, dlr_objective, map_objective, rank_objective):
        together = build(model, queries, gallery)(images)
        for row in range(5):
            alone = build(model, queries.take(torch.tensor([row])), gallery)(images[row : row + 1])
            torch.testing.assert_close(alone[0], together[row])


def test_few_wrong_items_are_not_filled_up_with_right_ones() -> None:
    """More right items than wrong ones: the gradient is that of the true wrong items alone."""
    model, images, _, gallery = problem(4)
    few = Gallery(gallery.embeddings[:10], torch.tensor([0] * 8 + [1, 1]))
    queries = Queries(few.labels[:1], torch.arange(1), torch.arange(1))
    image = images[:1].clone().requires_grad_(True)
    (found,) = torch.autograd.grad(map_objective(model, queries, few)(image).sum(), image)
    embedding = model(image)[0]
    right, wrong = embedding @ few.embeddings[1:8].T, embedding @ few.embeddings[8:].T
    soft = 0.0
    for mine in right:
        ahead = torch.sigmoid((right - mine) / 0.01).sum() + 0.5
        soft = soft + ahead / (ahead + torch.sigmoid((wrong - mine) / 0.01).sum())
    (expected,) = torch.autograd.grad(-soft / 7, image)
    torch.testing.assert_close(found, expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_items_of_the_querys_group_enter_no_objective(seed: int) -> None:
    """Whatever is embedded in place of an ignored item, nothing changes."""
    model, images, queries, gallery = problem(seed)
    groups = torch.arange(20) // 2
    queries = Queries(queries.labels, groups[:5], torch.arange(5))
    moved = gallery.embeddings.clone()
    moved[1] = model(images)[0].detach()  # row 1 is in the group of query 0, and would be its nearest
    plain, changed = (Gallery(items, gallery.labels, groups) for items in (gallery.embeddings, moved))
    first = queries.take(torch.tensor([0]))
    if not bool(((gallery.labels == first.labels) & (groups != 0)).any()):
        return  # all right items are ignored
    for build in (margin_objective, cross_entropy_objective, dlr_objective, map_objective, rank_objective):
        assert torch.equal(build(model, first, plain)(images[:1]), build(model, first, changed)(images[:1]))
    found = [metric_loss_objective(model, images[:1], first, gallery)(images[:1] * 0.9) for gallery in (plain, changed)]
    assert torch.equal(*found)
    target = gallery.labels[1:2]
    if int(target) != int(first.labels):
        found = [targeted_objective(model, first, gallery, target)(images[:1]) for gallery in (plain, changed)]
        assert torch.equal(*found)


def test_role_objectives_by_hand() -> None:
    model, images, *_ = problem(1)
    anchor, positive, negative = (model(images.roll(shift, 0)).detach() for shift in (1, 2, 3))
    found = {
        role: role_objective(model, role, anchor, positive, negative)(images)
        for role in ("anchor", "positive", "negative")
    }
    for row, embedding in enumerate(model(images)):
        to = {"a": anchor[row], "p": positive[row], "n": negative[row]}
        apart = {name: float((embedding - other).norm()) for name, other in to.items()}
        assert float(found["positive"][row]) == pytest.approx(apart["a"])
        assert float(found["negative"][row]) == pytest.approx(-apart["a"])
        assert float(found["anchor"][row]) == pytest.approx(apart["p"] - apart["n"])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), aimed=st.booleans())
def test_the_soft_margin_by_hand(seed: int, aimed: bool) -> None:
    """The value is the margin; the gradient weighs items by how near they are, in units of 0.3 margins."""
    model, images, queries, gallery = problem(seed)
    target = torch.tensor([next(x for x in (0, 3) if x != label) for label in queries.labels]) if aimed else None
    found, gradient = value_and_gradient(soft_margin_objective(model, queries, gallery, target), images)
    images.requires_grad_(True)
    similarity = model(images) @ gallery.embeddings.T
    for row in range(5):
        others = [item for item in range(20) if item != row]
        own = [similarity[row, item] for item in others if gallery.labels[item] == queries.labels[row]]
        wrong = [similarity[row, item] for item in others if gallery.labels[item] != queries.labels[row]]
        goal = wrong
        if target is not None:
            goal = [similarity[row, item] for item in others if gallery.labels[item] == target[row]]
        hard, margin = float(max(goal)) - float(max(own)), float(max(wrong)) - float(max(own))
        assert float(found[row]) == pytest.approx(hard + FOOLS * (margin >= 0), abs=1e-9)
        pull = 0
        for items, sign in ((goal, 1), (own, -1)):
            weights = [math.exp(float(item - max(items)) / (0.3 * abs(margin))) for item in items]
            pull = pull + sign * sum(w * item for w, item in zip(weights, items, strict=True)) / sum(weights)
        (expected,) = torch.autograd.grad(pull, images, retain_graph=True)
        torch.testing.assert_close(gradient[row], expected[row])


def test_the_soft_margin_at_its_ends() -> None:
    """No wrong item: minus infinity. A margin of exactly 0: fooled, and nothing is divided by it."""
    model, images, queries, gallery = problem(0)
    alone = Gallery(gallery.embeddings[:5], queries.labels[:1].expand(5))
    value, gradient = value_and_gradient(
        soft_margin_objective(model, queries.take(torch.tensor([0])), alone), images[:1]
    )
    assert float(value) == -math.inf
    assert not gradient.any()
    same = Gallery(gallery.embeddings[:1].expand(20, -1), gallery.labels)
    value, gradient = value_and_gradient(soft_margin_objective(model, queries, same), images)
    assert torch.equal(value, torch.full((5,), FOOLS, dtype=value.dtype))
    assert gradient.isfinite().all()
