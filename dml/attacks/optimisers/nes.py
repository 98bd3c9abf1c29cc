"""Natural evolution strategies (Ilyas et al. 2018): PGD along a gradient that is estimated from values alone."""

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.objectives.base import Objective
from dml.attacks.optimisers.pgd import better, value_of
from dml.common.randomness import normal


@torch.no_grad()
def nes(
    images: Tensor,
    objective: Objective,
    ball: Ball,
    *,
    steps: int,
    step_size: float,
    samples: int = 20,
    spacing: float = 0.01,
    generator: torch.Generator,
) -> Tensor:
    """Perturb images with an objective that gives no gradient, such as one that sees only the ranking.

    Args:
        images: (B, 3, H, W) in [0, 1].
        objective: images -> (B,), higher is worse for the defender, each value from its own image alone.
        ball: how far an image may move.
        steps: steps, each of which evaluates the objective ``2 * samples + 1`` times.
        step_size: in pixel units.
        samples: random directions per step; each is tried both ways.
        spacing: standard deviation of a trial, pixel units.
        generator: of the directions.

    Returns:
        The best images found, of the same shape, detached.
    """
    images = images.detach()
    current, best, best_value = images, images, value_of(objective, images)
    for _ in range(steps):
        gradient = torch.zeros_like(images)
        for _ in range(samples):
            direction = normal(images.shape, images, generator)
            rise = objective(current + spacing * direction) - objective(current - spacing * direction)
            gradient += rise.nan_to_num(0).view(-1, 1, 1, 1) * direction
        current = ball.project(ball.step(current, gradient, step_size), images)
        best, best_value = better(best, best_value, current, value_of(objective, current))
    return best
