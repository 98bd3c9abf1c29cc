"""PGD with momentum (Dong et al. 2018, "Boosting Adversarial Attacks with Momentum")."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dml.attacks.balls import Ball, spread
from dml.attacks.objectives.base import Objective
from dml.attacks.optimisers.pgd import better, falling_steps, value_and_gradient, value_of

DONE = 0.25  # share of the images, at least, that leave together: a batch of a new size costs time, too


class Goal(NamedTuple):
    """When to let an image go.

    Attributes:
        value: (B,), enough for each image; what is left of a run goes to the others.
        narrow: row numbers (B',) -> the objective of those images alone.
    """

    value: Tensor
    narrow: Callable[[Tensor], Objective]


def momentum_pgd(
    images: Tensor,
    objective: Objective,
    ball: Ball,
    *,
    steps: int,
    goal: Goal | None = None,
    generator: torch.Generator,
) -> Tensor:
    """Follow the sum of all gradients so far, each scaled to a mean of 1, and keep the best point of each image.

    Steps fall from twice the radius towards 0 along half a cosine. The first cross the ball, and the sum of gradients
    keeps what they found out on the way; single gradients of a similarity to the nearest item jump with that item.

    Args:
        images: (B, 3, H, W) in [0, 1].
        objective: images -> (B,), higher is worse for the defender; each value depends on its own image alone.
        ball: how far an image may move; with a goal, one radius for all.
        steps: gradient steps, from a random point of the ball.
        goal: None takes every step with every image.
        generator: of that point.

    Returns:
        Perturbed images of the same shape, detached.
    """
    images = images.detach()
    found, rows = images.clone(), torch.arange(len(images), device=images.device)
    project, perturbed, speed = ball.projection(images), ball.start(images, generator), torch.zeros_like(images)
    winner, winner_value = images, None
    for size in falling_steps(2 * ball.eps, steps):
        value, gradient = value_and_gradient(objective, perturbed)
        winner, winner_value = better(winner, winner_value, perturbed, value)
        speed += gradient.div_(spread(gradient.abs().mean((1, 2, 3)).clamp_min(1e-20)))
        perturbed = project(ball.step(perturbed, speed, size))
        if goal is None:
            continue
        below = winner_value < goal.value[rows]
        if int(below.sum()) <= (1 - DONE) * len(rows):
            found[rows] = winner
            rows = rows[below]
            if not len(rows):
                return found
            objective = goal.narrow(rows)
            images, perturbed, speed, winner = (part[below] for part in (images, perturbed, speed, winner))
            project = ball.projection(images)
            winner_value = winner_value[below]
    found[rows] = better(winner, winner_value, perturbed, value_of(objective, perturbed))[0]
    return found
