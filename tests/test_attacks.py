"""Attacks: optima in closed form on a linear embedding, and properties of every named attack."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import LinearEmbedder
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dml.attacks import ATTACKS
from dml.attacks.balls import L2, Linf
from dml.attacks.base import Attack
from dml.attacks.objectives.margin import margin_objective, nearest_wrong_classes, targeted_objective
from dml.attacks.optimisers.pgd import falling_steps, pgd
from dml.attacks.queries.map import MAP
from dml.attacks.queries.margin import Margin
from dml.attacks.queries.peer import INSTALLED
from dml.attacks.queries.targeted import Targeted
from dml.common.table import find
from dml.data.base import Split
from dml.models.embedder import build
from dml.retrieval.gallery import Gallery, Queries
from dml.retrieval.index import Search
from dml.retrieval.metrics import per_query

BALLS = {"linf": Linf, "l2": L2}


def outside(labels: Tensor) -> Queries:
    """Queries that are not in the gallery."""
    return Queries(labels, torch.full_like(labels, -1), torch.full_like(labels, -1))


def grey(count: int, side: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.full((count, 3, side, side), 0.5, dtype=dtype)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_pgd_reaches_the_optimum_of_a_linear_objective(norm: str, dual: int, generator: torch.Generator) -> None:
    """The maximum of <w, x> over a ball of radius eps about x0 is <w, x0> + eps * |w| in the dual norm."""
    images = grey(8)
    weight = torch.randn(8, images[0].numel(), generator=generator, dtype=torch.float64)

    def objective(images: Tensor) -> Tensor:
        return (images.flatten(1) * weight).sum(1)

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
    queries = outside(torch.zeros(5, dtype=torch.long))
    objective = margin_objective(model, queries, gallery)
    found = pgd(images, objective, Linf(0.05), steps=20, step_size=0.01, generator=generator)
    gain = 0.05 * (model.weight.T @ (items[1] - items[0])).abs().sum()
    torch.testing.assert_close(objective(found), objective(images) + gain, atol=1e-5, rtol=0)


def test_targeted_attack_moves_towards_the_class_it_is_told(generator: torch.Generator) -> None:
    images = grey(4)
    model = LinearEmbedder(images[0].numel(), 6)
    gallery = Gallery(torch.eye(6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2]))
    queries = outside(torch.zeros(4, dtype=torch.long))
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
    own = torch.tensor([0, 8, -1])
    queries = Queries(torch.tensor([2, 9, 4]), own, own)  # the last query's class is not there
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
        lambda images: -(images - target).abs().flatten(1).sum(1),
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
def test_radius_may_differ_between_images(norm: str, generator: torch.Generator) -> None:
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


def test_same_generator_same_images() -> None:
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

    def objective(images: Tensor) -> Tensor:
        return (40 * images).sin().flatten(1).sum(1)

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
    with pytest.raises(ValueError, match="step_size lists 2 sizes for 3 steps"):
        pgd(images, lambda x: x.sum((1, 2, 3)), Linf(0.1), steps=3, step_size=[0.1, 0.1], generator=generator)
    with pytest.raises(ValueError, match="restarts is 2 with best=False"):
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


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_wrong_classes_do_not_count_items_of_the_querys_group(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    items = torch.randn(12, 4, generator=draw)
    gallery = Gallery(items, torch.arange(12) % 4, torch.arange(12) // 4)
    queries = Queries(gallery.labels[:5], gallery.groups[:5], torch.arange(5))
    found = nearest_wrong_classes(items[:5], queries, gallery, 2)
    for row in range(5):
        counted = [i for i in range(12) if i // 4 != row // 4]
        best = {c: max(float(items[i] @ items[row]) for i in counted if i % 4 == c) for c in range(4) if c != row % 4}
        assert found[row].tolist() == sorted(best, key=best.get, reverse=True)[:2]


def test_an_output_that_is_no_number_is_the_worst_point(generator: torch.Generator) -> None:
    """A model that breaks down has failed; the attack keeps such an image, and the image itself is a real one."""
    images = grey(3)

    def objective(images: Tensor) -> Tensor:
        value = images.flatten(1).mean(1)
        return torch.where(value > 0.55, torch.log(0.55 - value), value)  # not a number, nor is its gradient

    found = pgd(images, objective, Linf(0.1), steps=5, step_size=0.03, generator=generator)
    assert objective(found).isnan().all()
    assert not found.isnan().any()
    assert (found - images).abs().max() <= 0.1


CHEAP = {"tries": 4, "draws": 2, "steps": 3}
NAMES = [name for name in ATTACKS if name != "peer" or INSTALLED]


def cheap(name: str) -> Attack:
    kind = find(ATTACKS, name, "attack")
    return kind(**{key: value for key, value in CHEAP.items() if key in kind.__dataclass_fields__})


@pytest.fixture(scope="module")
def searches() -> dict[str, Search]:
    """An untrained model that searches plain images, images with groups, and with queries apart from the gallery."""
    draw = np.random.default_rng(0)
    patterns = draw.integers(40, 215, (6, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    pixels = np.repeat(patterns, 6, axis=0) + draw.normal(0, 12, (36, 16, 16, 3))
    images, labels = np.clip(pixels, 0, 255).astype(np.uint8), np.repeat(np.arange(6), 6)
    names = [f"class {label}" for label in range(6)]
    model = build("conv4", 8, seed=0)
    halves = [Split(images[part::2], labels[part::2], names) for part in (0, 1)]
    return {
        "plain": Search.over(model, Split(images, labels, names)),
        "groups": Search.over(model, Split(images, labels, names, np.arange(36) // 2)),
        "apart": Search.over(model, *halves),
    }


@pytest.mark.parametrize("kind", ["plain", "groups", "apart"])
@pytest.mark.parametrize("name", NAMES)
def test_every_named_attack_moves_queries_inside_the_ball_and_leaves_no_trace(
    name: str, kind: str, searches: dict[str, Search]
) -> None:
    search, rows = searches[kind], np.array([7, 2, 11])
    images, queries = search.images(rows), search.queries(rows)
    state = {key: value.clone() for key, value in search.model.state_dict().items()}
    before, modes = torch.get_rng_state(), [module.training for module in search.model.modules()]
    runs = cheap(name).runs(search)
    assert runs
    for run in runs:
        for eps in (0.0, 0.05):
            found = run(images, queries, Linf(eps), torch.Generator().manual_seed(1))
            again = run(images, queries, Linf(eps), torch.Generator().manual_seed(1))
            assert torch.equal(found, again)
            assert (found.double() - images.double()).abs().max() <= eps
            assert found.min() >= 0
            assert found.max() <= 1
            assert not found.requires_grad
            assert torch.equal(found, images) == (eps == 0) or name in ("carlini_wagner", "nes")
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not used"
    assert modes == [module.training for module in search.model.modules()]
    assert all(parameter.grad is None for parameter in search.model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in search.model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_doubled_attack_takes_twice_the_steps(name: str) -> None:
    attack = cheap(name)
    doubled = attack.doubled()
    if not hasattr(attack, "steps") or name == "nes":
        assert doubled is None, "black-box attacks and single steps have no doubled form"
    else:
        assert (doubled.steps, type(doubled)) == (2 * attack.steps, type(attack))


def test_restarts_and_targets_are_runs_of_their_own(searches: dict[str, Search]) -> None:
    search = searches["plain"]
    assert len(Margin(steps=20, restarts=3).runs(search)) == 4, "a short run goes first"
    assert len(Margin(steps=20, restarts=3, first=0).runs(search)) == 3
    assert len(Targeted(steps=5, classes=3, restarts=2).runs(search)) == 6
    assert len(Targeted(steps=5, classes=9).runs(search)) == 5, "there are five wrong classes"


def test_the_attack_on_map_lowers_map(searches: dict[str, Search]) -> None:
    search, rows = searches["plain"], np.arange(36)
    images, queries = search.images(rows), search.queries(rows)
    (run,) = MAP(steps=10).runs(search)
    found = run(images, queries, Linf(0.02), torch.Generator().manual_seed(0))
    with torch.no_grad():
        left = per_query(search.model(found), queries, search.gallery).map_r
    assert left.mean() < 0.5 * search.natural().map_r.mean()
    assert MAP.lowers == "map_r"


@pytest.mark.parametrize("name", NAMES)
def test_settings_that_make_no_sense_are_refused(name: str) -> None:
    kind = find(ATTACKS, name, "attack")
    for key in CHEAP:
        if key in kind.__dataclass_fields__:
            with pytest.raises(ValueError, match=f"{key} is 0; it must be at least 1"):
                kind(**{key: 0})
