"""Attacks: optima in closed form on a linear embedding, and what must hold for every attack."""

import itertools
import math

import pytest
import torch
from conftest import LinearEmbedder
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dml.attacks import L2, Linf, falling_steps, pgd
from dml.attacks.objectives.queries import margin_objective, nearest_wrong_classes, targeted_objective
from dml.retrieval.index import Gallery, Queries

BALLS = {"linf": Linf, "l2": L2}


def grey(count: int, side: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.full((count, 3, side, side), 0.5, dtype=dtype)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_pgd_reaches_the_optimum_of_a_linear_objective(norm: str, dual: int, generator: torch.Generator) -> None:
    """The maximum of <w, x> over a ball of radius eps about x0 is <w, x0> + eps * |w| in the dual norm."""
    images = grey(8)
    weight = torch.randn(8, images[0].numel(), generator=generator, dtype=torch.float64)

    def objective(pictures: Tensor) -> Tensor:
        return (pictures.flatten(1) * weight).sum(1)

    eps = 0.1
    found = pgd(images, objective, BALLS[norm](eps), steps=30, step_size=falling_steps(eps, 30), generator=generator)
    optimum = objective(images) + eps * weight.norm(p=dual, dim=1)
    torch.testing.assert_close(objective(found), optimum, atol=1e-5, rtol=0)


def test_margin_attack_on_a_linear_embedding_reaches_the_optimum(generator: torch.Generator) -> None:
    """With one right and one wrong item the margin is linear: eps * |W^T (wrong - right)|_1 above the start."""
    images = grey(5)
    model = LinearEmbedder(images[0].numel(), 6)
    items = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    gallery = Gallery(items, torch.tensor([0, 1]))
    queries = Queries(torch.zeros(5, dtype=torch.long), torch.full((5,), -1))
    objective = margin_objective(model, queries, gallery)
    found = pgd(images, objective, Linf(0.05), steps=20, step_size=0.01, generator=generator)
    slope = (model.weight.T @ (items[1] - items[0])).abs().sum()
    torch.testing.assert_close(objective(found), objective(images) + 0.05 * slope, atol=1e-5, rtol=0)


def test_targeted_attack_moves_towards_the_class_it_is_told(generator: torch.Generator) -> None:
    images = grey(4)
    model = LinearEmbedder(images[0].numel(), 6)
    gallery = Gallery(torch.eye(6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2]))
    queries = Queries(torch.zeros(4, dtype=torch.long), torch.full((4,), -1))
    for target in (1, 2):
        objective = targeted_objective(model, queries, gallery, torch.full((4,), target))
        found = pgd(images, objective, Linf(0.3), steps=20, step_size=0.1, generator=generator)
        nearest = gallery.labels[(model(found) @ gallery.embeddings.T).argmax(1)]
        assert (nearest == target).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_nearest_wrong_classes_are_the_nearest(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    items = torch.randn(12, 4, generator=draw)
    gallery = Gallery(items, torch.tensor([2, 2, 5, 5, 5, 7, 7, 9, 9, 9, 9, 2]))
    queries = Queries(torch.tensor([2, 9, 4]), torch.tensor([0, 8, -1]))  # the last query's class is not there
    points = torch.randn(3, 4, generator=draw)
    found = nearest_wrong_classes(points, queries, gallery, 3)
    for row, (point, label) in enumerate(zip(points, [2, 9, 4], strict=True)):
        best = {c: float((items[gallery.labels == c] @ point).max()) for c in (2, 5, 7, 9) if c != label}
        assert found[row].tolist() == sorted(best, key=best.get, reverse=True)[:3]


@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(sorted(BALLS)),
    eps=st.one_of(st.floats(0, 2), st.sampled_from([0.0, 8 / 255, 0.01])),
    seed=st.integers(0, 1000),
    best=st.booleans(),
    random_start=st.booleans(),
)
def test_pgd_stays_in_the_ball_and_in_range(norm: str, eps: float, seed: int, best: bool, random_start: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 3, 5, 5, generator=draw)
    images[0] = images[0].round()  # pixels at the ends of the range
    target = torch.rand(3, 3, 5, 5, generator=draw)
    found = pgd(
        images,
        lambda pictures: -(pictures - target).abs().flatten(1).sum(1),
        BALLS[norm](eps),
        steps=4,
        step_size=eps,
        random_start=random_start,
        best=best,
        generator=draw,
    )
    assert found.min() >= 0
    assert found.max() <= 1
    offset = (found.double() - images.double()).flatten(1)
    length = offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)
    assert (length <= eps).all(), "the exact radius, not a rounded one"
    if eps == 0:
        assert torch.equal(found, images)


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_radius_may_differ_between_pictures(norm: str, generator: torch.Generator) -> None:
    images = torch.rand(3, 3, 4, 4, generator=generator)
    radii = torch.tensor([0.0, 0.1, 0.3])
    found = pgd(images, lambda x: x.flatten(1).sum(1), BALLS[norm](radii), steps=3, step_size=0.3, generator=generator)
    moved = (found - images).abs().flatten(1).amax(1)
    assert torch.equal(found[0], images[0])
    assert 0 < moved[1] <= 0.1
    assert 0.1 < moved[2] <= 0.3 if norm == "linf" else moved[2] <= 0.3


def test_attack_leaves_no_trace(generator: torch.Generator) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    model.eval()
    weight_gradient = torch.ones_like(model[0].weight)
    model[0].weight.grad = weight_gradient.clone()
    images = torch.rand(2, 3, 6, 6, generator=generator).requires_grad_(True)
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    found = pgd(images, lambda x: model(x).sum(1), Linf(0.1), steps=3, step_size=0.1, generator=generator)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not used"
    assert torch.equal(model[0].weight.grad, weight_gradient)
    assert images.grad is None
    assert not found.requires_grad
    assert not model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_same_generator_same_pictures() -> None:
    images = torch.rand(2, 3, 6, 6)
    runs = [
        pgd(
            images,
            lambda x: x.flatten(1).square().sum(1),
            L2(0.5),
            steps=3,
            step_size=0.2,
            restarts=2,
            generator=torch.Generator().manual_seed(4),
        )
        for _ in range(2)
    ]
    assert torch.equal(*runs)


def test_best_iterate_and_restarts_never_lose(generator: torch.Generator) -> None:
    """On a bumpy objective with steps far too large, the last point is bad but the best one is kept."""
    images = grey(20, dtype=torch.float32)

    def objective(pictures: Tensor) -> Tensor:
        return (40 * pictures).sin().flatten(1).sum(1)

    def run(restarts: int, best: bool) -> Tensor:
        draw = torch.Generator().manual_seed(1)
        return objective(
            pgd(images, objective, Linf(0.3), steps=5, step_size=0.3, restarts=restarts, best=best, generator=draw)
        )

    assert (run(1, best=True) >= run(1, best=False)).all()
    assert (run(4, best=True) >= run(1, best=True)).all()
    assert run(4, best=True).mean() > run(1, best=True).mean()


@pytest.mark.parametrize("norm", sorted(BALLS))
def test_negative_radius_is_refused(norm: str) -> None:
    with pytest.raises(ValueError, match=r"eps is -0\.1"):
        BALLS[norm](-0.1)


def test_wrong_arguments_are_refused(generator: torch.Generator) -> None:
    images = grey(1)
    with pytest.raises(ValueError, match="2 step sizes were given for 3 steps"):
        pgd(images, lambda x: x.sum((1, 2, 3)), Linf(0.1), steps=3, step_size=[0.1, 0.1], generator=generator)
    with pytest.raises(ValueError, match="restarts need best=True"):
        pgd(
            images,
            lambda x: x.sum((1, 2, 3)),
            Linf(0.1),
            steps=1,
            step_size=0.1,
            restarts=2,
            best=False,
            generator=generator,
        )


def test_falling_steps_fall() -> None:
    sizes = falling_steps(0.5, 10)
    assert sizes[0] == 0.5
    assert all(a > b > 0 for a, b in itertools.pairwise(sizes))
    assert math.isclose(sizes[5], 0.25)
