"""PGD with momentum (Dong et al. 2018, "Boosting Adversarial Attacks with Momentum")."""

import torch
from torch import Tensor

from dml.attacks.balls import Ball, spread
from dml.attacks.objectives.base import Objective
from dml.attacks.optimisers.pgd import better, falling_steps, value_and_gradient, value_of


def momentum_pgd(images: Tensor, objective: Objective, ball: Ball, *, steps: int, generator: torch.Generator) -> Tensor:
    """Follow the sum of all gradients so far, each scaled to a mean of 1, and keep the best point of each image.

    Steps fall from twice the radius towards 0 along half a cosine. The first cross the ball, and the sum of gradients
    keeps what they found out on the way; single gradients of a similarity to the nearest item jump with that item.

    Args:
        images: (B, 3, H, W) in [0, 1].
        objective: images -> (B,), higher is worse for the defender; each value depends on its own image alone.
        ball: how far an image may move.
        steps: gradient steps, from a random point of the ball.
        generator: of that point.

    Returns:
        Perturbed images of the same shape, detached.
    """
    images = images.detach()
    perturbed, speed = ball.start(images, generator), torch.zeros_like(images)
    winner, winner_value = images, None
    for size in falling_steps(2 * ball.eps, steps):
        value, gradient = value_and_gradient(objective, perturbed)
        winner, winner_value = better(winner, winner_value, perturbed, value)
        speed = speed + gradient / spread(gradient.abs().mean((1, 2, 3)).clamp_min(1e-20))
        perturbed = ball.project(ball.step(perturbed, speed, size), images)
    return better(winner, winner_value, perturbed, value_of(objective, perturbed))[0]
