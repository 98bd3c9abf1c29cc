"""The optimisers beside PGD: closed-form optima, comparisons at equal effort, and what must hold for all of them."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dml.attacks.balls import L2, Linf
from dml.attacks.objectives.base import Objective
from dml.attacks.optimisers.apgd import apgd, checkpoint_steps
from dml.attacks.optimisers.carlini_wagner import carlini_wagner
from dml.attacks.optimisers.fgsm import fgsm, r_fgsm
from dml.attacks.optimisers.momentum import Goal, momentum_pgd
from dml.attacks.optimisers.nes import nes
from dml.attacks.optimisers.pgd import falling_steps, pgd
from dml.attacks.optimisers.square import side_length, square

Optimiser = Callable[[Tensor, Objective, Linf, torch.Generator], Tensor]
OPTIMISERS: dict[str, Optimiser] = {
    "fgsm": lambda images, objective, ball, draw: fgsm(images, objective, ball),
    "r_fgsm": lambda images, objective, ball, draw: r_fgsm(images, objective, ball, generator=draw),
    "pgd": lambda images, objective, ball, draw: pgd(
        images, objective, ball, steps=5, step_size=ball.eps, generator=draw
    ),
    "apgd": lambda images, objective, ball, draw: apgd(images, objective, ball, steps=8, generator=draw),
    "momentum": lambda images, objective, ball, draw: momentum_pgd(images, objective, ball, steps=8, generator=draw),
    "square": lambda images, objective, ball, draw: square(images, objective, ball, tries=8, generator=draw),
    "nes": lambda images, objective, ball, draw: nes(
        images, objective, ball, steps=2, step_size=ball.eps, samples=2, generator=draw
    ),
}


def linear(weight: Tensor) -> Objective:
    return lambda images: (images.flatten(1) * weight).sum(1)


@pytest.mark.parametrize(("ball", "dual"), [(Linf, 1), (L2, 2)])
@pytest.mark.parametrize("name", ["fgsm", "apgd", "momentum"])
def test_the_optimum_of_a_linear_objective_is_reached(
    name: str, ball: type, dual: int, generator: torch.Generator
) -> None:
    """<w, x0> + eps * |w| in the dual norm."""
    images = torch.full((6, 3, 4, 4), 0.5, dtype=torch.float64)
    weight = torch.randn(6, 48, generator=generator, dtype=torch.float64)
    found = OPTIMISERS[name](images, linear(weight), ball(0.1), generator)
    optimum = linear(weight)(images) + 0.1 * weight.norm(p=dual, dim=1)
    torch.testing.assert_close(linear(weight)(found), optimum, atol=1e-4, rtol=0)


def test_r_fgsm_ends_on_the_far_corner_of_a_linear_objective(generator: torch.Generator) -> None:
    """Half of eps goes to a random corner, the other half along the gradient: never past the optimum, never below 0."""
    images = torch.full((4, 3, 4, 4), 0.5, dtype=torch.float64)
    weight = torch.randn(4, 48, generator=generator, dtype=torch.float64)
    found = r_fgsm(images, linear(weight), Linf(0.1), generator=generator)
    moved = ((found - images) / 0.1).round(decimals=6)
    assert set(moved.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert (moved.flatten(1) * weight >= 0).all()
    assert (moved == 0).any()


def test_square_finds_the_sign_that_a_flat_objective_wants(generator: torch.Generator) -> None:
    """With one weight for a whole channel any large square helps: most of the optimum is found without a gradient."""
    images = torch.full((5, 3, 8, 8), 0.5)
    weight = torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1).expand(5, 3, 8, 8).flatten(1)
    found = square(images, linear(weight), Linf(0.1), tries=300, generator=generator)
    gained = (linear(weight)(found) - linear(weight)(images)) / (0.1 * 192)
    assert (gained > 0.7).all()


def test_squares_shrink_from_most_of_the_image_to_a_pixel() -> None:
    sides = [side_length(step / 1000, 32, 32) for step in range(1000)]
    assert sides[0] == 29
    assert sides[-1] == 1
    assert sorted(sides, reverse=True) == sides


def test_nes_climbs_without_a_gradient(generator: torch.Generator) -> None:
    images = torch.full((4, 3, 4, 4), 0.5)
    weight = torch.randn(4, 48, generator=generator)

    def objective(images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return linear(weight)(images)

    found = nes(images, objective, Linf(0.1), steps=10, step_size=0.05, samples=30, generator=generator)
    gained = (linear(weight)(found) - linear(weight)(images)) / (0.1 * weight.abs().sum(1))
    assert (gained > 0.7).all()


def test_carlini_and_wagner_find_the_nearest_point_of_a_half_space(generator: torch.Generator) -> None:
    """The nearest point where <w, x> reaches b lies (b - <w, x0>) / |w| away."""
    images = torch.full((5, 3, 4, 4), 0.5, dtype=torch.float64)
    weight = torch.randn(5, 48, generator=generator, dtype=torch.float64)
    away = torch.tensor([0.05, 0.1, 0.2, 0.4, 30.0], dtype=torch.float64)  # the last one cannot be reached
    bound = linear(weight)(images) + away * weight.norm(dim=1)
    found = carlini_wagner(images, lambda x: linear(weight)(x) - bound, steps=200, searches=8)
    length = (found - images).flatten(1).norm(dim=1)
    assert (linear(weight)(found) > bound)[:4].all()
    torch.testing.assert_close(length[:4], away[:4], rtol=0.05, atol=0)
    assert (length[:4] >= away[:4]).all()
    assert torch.equal(found[4], images[4]), "what cannot be fooled is left as it was"


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(OPTIMISERS)),
    eps=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 8 / 255, 0.01])),
    seed=st.integers(0, 1000),
)
def test_every_optimiser_stays_in_the_ball_and_leaves_no_trace(name: str, eps: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 3, 5, 5, generator=draw)
    images[0] = images[0].round()
    weight = torch.randn(3, 75, generator=draw)
    before = torch.get_rng_state()
    found = OPTIMISERS[name](images, linear(weight), Linf(eps), draw)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is not used"
    assert not found.requires_grad
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found.double() - images.double()).abs().max() <= eps
    if eps == 0:
        assert torch.equal(found, images)


@pytest.mark.parametrize("name", ["apgd", "square", "pgd", "fgsm"])
def test_radius_may_differ_between_images(name: str, generator: torch.Generator) -> None:
    images = torch.full((3, 3, 6, 6), 0.5)
    weight = torch.ones(3, 108)
    found = OPTIMISERS[name](images, linear(weight), Linf(torch.tensor([0.0, 0.1, 0.3])), generator)
    moved = (found - images).abs().flatten(1).amax(1)
    torch.testing.assert_close(moved, torch.tensor([0.0, 0.1, 0.3]), atol=1e-5, rtol=0)


def bumpy(seed: int) -> tuple[Tensor, Objective]:
    """An image and a small random network's output: many local maxima, all gradients exact."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(1, 3, 4, 4, generator=draw)
    first, second = torch.randn(48, 24, generator=draw), torch.randn(24, generator=draw)
    return images, lambda images: torch.tanh(3 * (images - 0.5).flatten(1) @ first / 4).mul(second).sum(1)


def test_apgd_is_at_least_as_good_as_pgd_at_equal_steps() -> None:
    """200 small problems: PGD with the usual step of 2.5 eps / steps, and with falling steps; best points kept."""
    steps, ball = 50, Linf(0.2)
    values: dict[str, list[float]] = {"apgd": [], "usual": [], "falling": []}
    for seed in range(200):
        images, objective = bumpy(seed)
        found = {"apgd": apgd(images, objective, ball, steps=steps, generator=torch.Generator().manual_seed(seed))}
        for name, sizes in (("usual", [2.5 * 0.2 / steps] * steps), ("falling", falling_steps(0.2, steps))):
            draw = torch.Generator().manual_seed(seed)
            found[name] = pgd(images, objective, ball, steps=steps, step_size=sizes, generator=draw)
        for name, images in found.items():
            values[name].append(float(objective(images)))
    ours = torch.tensor(values.pop("apgd"))
    for theirs in map(torch.tensor, values.values()):
        assert ours.mean() >= theirs.mean()
        assert (ours >= theirs - 1e-4 * theirs.abs()).float().mean() >= 0.9


def test_apgd_checkpoints_come_closer_and_closer() -> None:
    """Croce and Hein's p_j: .22, .41, .57, .70, .80, .87, .93, .99 of the steps."""
    assert checkpoint_steps(100) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("name", ["apgd", "square"])
def test_the_search_stops_when_all_have_reached_the_goal(name: str, generator: torch.Generator) -> None:
    calls = 0

    def objective(images: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return images.flatten(1).sum(1)

    images = torch.full((4, 3, 4, 4), 0.5)
    effort = {"apgd": {"steps": 50}, "square": {"tries": 50}}[name]
    {"apgd": apgd, "square": square}[name](images, objective, Linf(0.1), goal=0.0, generator=generator, **effort)
    assert calls <= 2


@pytest.mark.parametrize("name", ["apgd", "square", "pgd"])
def test_a_value_that_is_no_number_is_kept_as_the_worst(name: str, generator: torch.Generator) -> None:
    """Where the mean exceeds .505 the objective breaks down; every optimiser that meets such a point keeps it."""
    images = torch.full((3, 3, 6, 6), 0.5)

    def objective(images: Tensor) -> Tensor:
        value = images.flatten(1).mean(1)
        return torch.where(value > 0.505, torch.sqrt(0.505 - value), value)

    found = OPTIMISERS[name](images, objective, Linf(0.1), generator)
    assert objective(found).isnan().all()
    assert (found - images).abs().max() <= 0.1, "pixels are numbers"


def test_nes_ignores_directions_without_a_value(generator: torch.Generator) -> None:
    images = torch.full((2, 3, 4, 4), 0.5)
    found = nes(
        images,
        lambda images: torch.full((2,), torch.nan),
        Linf(0.1),
        steps=2,
        step_size=0.05,
        samples=2,
        generator=generator,
    )
    assert not found.isnan().any()


def test_momentum_remembers_where_single_gradients_cancel(generator: torch.Generator) -> None:
    """A valley whose walls throw single steps back and forth, while the way along it has a small steady gradient."""
    images = torch.full((4, 3, 2, 2), 0.5, dtype=torch.float64)

    def valley(changed: Tensor) -> Tensor:
        moved = changed.flatten(1) - 0.5
        return moved[:, 0] - 30 * (moved[:, 1:] * torch.arange(1, 12)).sum(1).abs()

    ball = Linf(0.1)
    found = valley(momentum_pgd(images, valley, ball, steps=60, generator=generator))
    plain = valley(pgd(images, valley, ball, steps=60, step_size=ball.eps, generator=generator))
    assert (found > plain).all()


def test_an_image_that_reached_its_goal_takes_no_further_steps(generator: torch.Generator) -> None:
    """Easy images leave together, hard ones take every step, and each ends where it would without the others."""
    images = torch.full((8, 3, 4, 4), 0.5, dtype=torch.float64)
    weight = torch.randn(8, 48, generator=generator, dtype=torch.float64)
    ball, sizes = Linf(0.1), []
    optimum = 0.1 * weight.abs().sum(1)
    goal = torch.where(torch.arange(8) < 4, 0.5 * optimum, 2 * optimum)  # the second half cannot reach it

    def counted(rows: Tensor) -> Objective:
        def objective(changed: Tensor) -> Tensor:
            sizes.append(len(changed))
            return ((changed - 0.5).flatten(1) * weight[rows]).sum(1)

        return objective

    draw = generator.get_state()
    everyone = torch.arange(8)
    found = momentum_pgd(images, counted(everyone), ball, steps=20, goal=Goal(goal, counted), generator=generator)
    assert sizes[0] == 8
    assert sizes[-1] == 4
    assert len(sizes) == 21, "hard images take every step"
    whole = momentum_pgd(images, counted(everyone), ball, steps=20, generator=generator.set_state(draw))
    torch.testing.assert_close(found[4:], whole[4:], atol=0, rtol=0)
    reached = ((found - 0.5).flatten(1) * weight).sum(1)
    assert (reached[:4] >= goal[:4]).all()
    assert float((found - images).abs().max()) <= 0.1
    sizes.clear()
    momentum_pgd(images, counted(everyone), ball, steps=20, goal=Goal(-optimum, counted), generator=generator)
    assert sizes == [8], "nothing is left to do"
