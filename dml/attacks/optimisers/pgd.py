"""Projected gradient descent (Madry et al. 2018), on any objective and in any ball."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dml.attacks.balls import Ball

Objective = Callable[[Tensor], Tensor]


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
    """Perturb pictures so that the objective becomes as large as possible.

    Only gradients with respect to the pictures are taken: parameters keep their ``.grad``.

    Args:
        images: (B, 3, H, W) in [0, 1].
        objective: pictures -> (B,), higher is worse for the defender; it may depend on each picture alone
            (one picture's value must not change with its neighbours), or ``best`` means nothing.
        ball: how far a picture may move.
        steps: gradient steps in each restart.
        step_size: in pixel units, one for all steps or one a step.
        random_start: begin at a random point of the ball, else at the picture itself.
        restarts: independent runs; the better result counts, for each picture.
        best: return the best point met on the way, else the last one (a forward pass cheaper, for training).
        generator: of the random starts.

    Returns:
        Perturbed pictures of the same shape, detached.

    Raises:
        ValueError: the number of step sizes is not the number of steps, or several restarts without ``best``.
    """
    sizes = list(step_size) if isinstance(step_size, Sequence) else [step_size] * steps
    if len(sizes) != steps:
        raise ValueError(f"{len(sizes)} step sizes were given for {steps} steps")
    if restarts > 1 and not best:
        raise ValueError("several restarts need best=True: only then is there a better one to keep")
    images = images.detach()
    winner, winner_value = images, None
    for _ in range(restarts):
        perturbed = ball.start(images, generator) if random_start else images.clone()
        for size in sizes:
            value, gradient = slope(objective, perturbed)
            if best:
                winner, winner_value = better(winner, winner_value, perturbed, value)
            perturbed = ball.project(ball.step(perturbed, gradient, size), images)
        if best:
            with torch.no_grad():
                winner, winner_value = better(winner, winner_value, perturbed, objective(perturbed))
        else:
            winner = perturbed
    return winner


def falling_steps(first: float, steps: int) -> list[float]:
    """Step sizes that fall from ``first`` towards 0 along half a cosine: large moves early, refinement late."""
    return [first * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)]


def slope(objective: Objective, images: Tensor) -> tuple[Tensor, Tensor]:
    """Values (B,) of the objective and its gradient with respect to the pictures, both detached."""
    images = images.detach().requires_grad_(True)
    with torch.enable_grad():
        value = objective(images)
        # Summed, never averaged: a mean over the batch would make one picture's gradient depend on their number.
        (gradient,) = torch.autograd.grad(value.sum(), images)
    return value.detach(), gradient


def better(winner: Tensor, winner_value: Tensor | None, images: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """For each picture, the one with the higher value, and that value."""
    if winner_value is None:
        return images, value
    ahead = value > winner_value
    return torch.where(ahead.view(-1, 1, 1, 1), images, winner), torch.where(ahead, value, winner_value)
