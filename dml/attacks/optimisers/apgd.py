"""Auto-PGD (Croce and Hein 2020, section 3): PGD with momentum that adapts its step sizes."""

import torch
from torch import Tensor

from dml.attacks.balls import Ball, spread
from dml.attacks.objectives.base import Objective
from dml.attacks.optimisers.pgd import value_and_gradient, value_of

MOMENTUM = 0.75  # weight of the new direction (the paper's alpha)
RISING = 0.75  # share of steps that must have raised the value for a step size to be kept (the paper's rho)


def apgd(
    images: Tensor,
    objective: Objective,
    ball: Ball,
    *,
    steps: int,
    goal: float | None = None,
    generator: torch.Generator,
) -> Tensor:
    """Perturb images so that the objective becomes as large as possible. Nothing needs tuning.

    Each image has its own step size. It starts at 2 eps, and at a few checkpoints it is halved, and the search
    goes back to the best point, if too few steps raised the value or the best point did not change.

    Args:
        images: (B, 3, H, W) in [0, 1].
        objective: images -> (B,), higher is worse for the defender, each value from its own image alone.
        ball: how far an image may move.
        steps: gradient steps.
        goal: stop once every image has reached this value, or None.
        generator: of the random start.

    Returns:
        The best images found, of the same shape, detached.
    """
    images = images.detach()
    size = 2 * torch.as_tensor(ball.eps, dtype=images.dtype, device=images.device).expand(len(images))
    project = ball.projection(images)
    current = previous = ball.start(images, generator)
    value, gradient = value_and_gradient(objective, current)
    best, best_value, best_gradient = current, value, gradient
    checkpoints, last = set(checkpoint_steps(steps)), 0
    raised = torch.zeros_like(value)
    value_then, halved = best_value, torch.ones_like(value, dtype=torch.bool)
    for step in range(1, steps + 1):
        if goal is not None and bool((best_value >= goal).all()):
            break
        target = project(ball.step(current, gradient, size))
        weight = MOMENTUM if step > 1 else 1.0
        # current + weight * (target - current) + (1 - weight) * (current - previous), in place
        moved = target.sub_(current).mul_(weight).add_(current).add_((current - previous).mul_(1 - weight))
        previous, current = current, project(moved)
        old_value = value
        if step < steps:
            value, gradient = value_and_gradient(objective, current)
        else:  # nothing follows that would use a gradient
            value = value_of(objective, current)
        raised = raised + (value > old_value)
        ahead = value > best_value
        best = torch.where(spread(ahead), current, best)
        best_gradient = torch.where(spread(ahead), gradient, best_gradient)
        best_value = torch.where(ahead, value, best_value)
        if step in checkpoints:
            halve = (raised < RISING * (step - last)) | (~halved & (best_value == value_then))
            size = torch.where(halve, size / 2, size)
            current = torch.where(spread(halve), best, current)
            gradient = torch.where(spread(halve), best_gradient, gradient)
            value = torch.where(halve, best_value, value)
            raised, value_then, halved, last = torch.zeros_like(raised), best_value, halve, step
    return best


def checkpoint_steps(steps: int) -> list[int]:
    """Return the steps after which step sizes are judged; they come closer and closer (section 3.2 of the paper)."""
    before, percent, found = 0, 22, []
    while percent < 100:
        found.append(-(-percent * steps // 100))  # rounded up
        before, percent = percent, percent + max(percent - before - 3, 6)
    return found
