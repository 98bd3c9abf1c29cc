"""Projected gradient descent (Madry et al. 2018), on any objective and in any ball."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.objectives.base import Objective


def pgd(
    images: Tensor,
    objective: Objective,
    ball: Ball,
    *,
    steps: int,
    step_size: float | Sequence[float],
    random_start: bool = True,
    restarts: int = 1,
    best: bool = True,
    generator: torch.Generator,
) -> Tensor:
    """Perturb images so that the objective becomes as large as possible.

    Only gradients with respect to the images are taken: parameters keep their ``.grad``.

    Args:
        images: (B, 3, H, W) in [0, 1].
        objective: images -> (B,), higher is worse for the defender. With ``best`` each value must depend on its own
            image alone, not on the others in the batch.
        ball: how far an image may move.
        steps: gradient steps in each restart.
        step_size: in pixel units, one for all steps or one per step.
        random_start: begin at a random point of the ball, else at the image itself.
        restarts: independent runs; the better result counts, for each image.
        best: return the best point found on the way, else the last one (a forward pass cheaper, for training).
        generator: of the random starts.

    Returns:
        Perturbed images of the same shape, detached.

    Raises:
        ValueError: the number of step sizes is not the number of steps, or several restarts without ``best``.
    """
    sizes = list(step_size) if isinstance(step_size, Sequence) else [step_size] * steps
    if len(sizes) != steps:
        raise ValueError(f"step_size lists {len(sizes)} sizes for {steps} steps; it must list one per step")
    if restarts > 1 and not best:
        raise ValueError(f"restarts is {restarts} with best=False; only with best=True can the better result be kept")
    images = images.detach()
    project = ball.projection(images)
    winner, winner_value = images, None
    for _ in range(restarts):
        perturbed = ball.start(images, generator) if random_start else images.clone()
        for size in sizes:
            value, gradient = value_and_gradient(objective, perturbed)
            if best:
                winner, winner_value = better(winner, winner_value, perturbed, value)
            perturbed = project(ball.step(perturbed, gradient, size))
        if best:
            winner, winner_value = better(winner, winner_value, perturbed, value_of(objective, perturbed))
        else:
            winner = perturbed
    return winner


def falling_steps(first: float, steps: int) -> list[float]:
    """Return step sizes that fall from ``first`` towards 0 along half a cosine: large moves early, refinement late."""
    return [first * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]


def value_and_gradient(objective: Objective, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the objective's values (B,) and its gradient with respect to the images, both detached.

    A value that is not a number counts as infinite, because a model whose output is undefined has failed. A gradient
    that is not a number counts as 0.
    """
    images = images.detach().requires_grad_(True)
    with torch.enable_grad():
        value = objective(images)
        # Summed, never averaged: a mean over the batch would make one image's gradient depend on their number.
        (gradient,) = torch.autograd.grad(value.sum(), images)
    return _defined(value.detach()), gradient.nan_to_num(0)


@torch.no_grad()
def value_of(objective: Objective, images: Tensor) -> Tensor:
    """Return the objective's values (B,); one that is not a number counts as infinite."""
    return _defined(objective(images))


def _defined(value: Tensor) -> Tensor:
    return value.masked_fill(value.isnan(), torch.inf)


def better(winner: Tensor, winner_value: Tensor | None, images: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each image (B, 3, H, W), the one with the higher value (B,), and that value."""
    if winner_value is None:
        return images, value
    ahead = value > winner_value
    return torch.where(ahead.view(-1, 1, 1, 1), images, winner), torch.where(ahead, value, winner_value)
