"""What an objective is, and the constants that several objectives share."""

from collections.abc import Callable

from torch import Tensor

Objective = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) -> (B,); higher is worse for the defender."""

TEMPERATURE = 0.1
"""Divides similarities before a softmax, which inner products in [-1, 1] alone would leave flat."""

FOOLED = 1e-4
"""A margin at which a search may stop: above 0, so that rounding cannot undo it."""

FOOLS = 1e3
"""Added where the nearest item is wrong, to objectives whose value alone does not tell."""
