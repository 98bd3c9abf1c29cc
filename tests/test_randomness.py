"""Draws of an experiment: decided by its seed, and made where they are used."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dml.attacks.balls import L2, Linf
from dml.common import randomness
from dml.common.randomness import normal, torch_generator, uniform

Draw = Callable[..., Tensor]
BOTH = pytest.mark.parametrize(("draw", "torch_draw"), [(uniform, torch.rand), (normal, torch.randn)])


@BOTH
def test_the_cpu_draws_from_the_generator_itself(draw: Draw, torch_draw: Draw) -> None:
    like, generator = torch.zeros(2, dtype=torch.float64), torch_generator(0, "noise")
    drawn = [draw((4, 3), like, generator) for _ in range(2)]
    own = torch_generator(0, "noise")
    assert all(torch.equal(values, torch_draw((4, 3), generator=own).double()) for values in drawn)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_another_device_draws_by_itself(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a generator there, which the one of the CPU seeds: anew for each draw, and alike in every repetition."""
    made = []

    class There(torch.Generator):
        def __init__(self, device: torch.device) -> None:
            made.append((device.type, self))

        def __new__(cls, _: torch.device) -> torch.Generator:
            return super().__new__(cls)

    like, seeds = torch.zeros(2, device="meta"), []
    for _ in range(2):
        own = torch_generator(0, "noise")
        with monkeypatch.context() as patched:
            patched.setattr(randomness.torch, "Generator", There)
            assert [draw((4, 3), like, own).device.type for _ in range(2)] == ["meta", "meta"]
        seeds.append([generator.initial_seed() for _, generator in made])
        assert {place for place, _ in made} == {"meta"}
        made.clear()
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("ball", [Linf(0.03), L2(0.5)])
def test_random_starts_on_a_gpu(ball: Linf | L2) -> None:
    """They repeat, differ from call to call, and lie in the ball."""
    images = torch.full((5, 3, 8, 8), 0.5, device="cuda")
    generators = [torch_generator(0, "start") for _ in range(2)]
    first, again = (ball.start(images, generator) for generator in generators)
    assert torch.equal(first, again)
    assert not torch.equal(first, ball.start(images, generators[0]))
    assert torch.allclose(first, ball.project(first, images))
