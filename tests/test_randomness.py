"""Draws on the CPU are decided by the seed alone; tests/test_gpu.py has those on a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dml.common.randomness import normal, torch_generator, uniform

Draw = Callable[..., Tensor]
BOTH = pytest.mark.parametrize(("draw", "torch_draw"), [(uniform, torch.rand), (normal, torch.randn)])


@BOTH
def test_the_cpu_draws_from_the_generator_itself(draw: Draw, torch_draw: Draw) -> None:
    like, generator = torch.zeros(2, dtype=torch.float64), torch_generator(0, "noise")
    drawn = [draw((4, 3), like, generator) for _ in range(2)]
    own = torch_generator(0, "noise")
    assert all(torch.equal(values, torch_draw((4, 3), generator=own).double()) for values in drawn)
