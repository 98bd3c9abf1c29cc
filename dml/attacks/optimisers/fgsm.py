"""One-step attacks: FGSM (Goodfellow et al. 2015) and R-FGSM (Tramèr et al. 2018)."""

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.objectives.base import Objective
from dml.attacks.optimisers.pgd import value_and_gradient
from dml.common.randomness import normal


def fgsm(images: Tensor, objective: Objective, ball: Ball) -> Tensor:
    """Take one step of length eps from the image itself.

    An objective that is flat at the image, as embedding shift is, leaves the image unchanged.

    Args:
        images: (B, 3, H, W) in [0, 1].
        objective: images -> (B,), higher is worse for the defender.
        ball: how far an image may move.

    Returns:
        Perturbed images of the same shape, detached.
    """
    images = images.detach()
    return ball.project(ball.step(images, value_and_gradient(objective, images)[1], ball.eps), images)


def r_fgsm(images: Tensor, objective: Objective, ball: Ball, *, generator: torch.Generator) -> Tensor:
    """Move half of eps to a random corner of the ball, and the other half along the gradient found there.

    Args:
        images, objective, ball: see :func:`fgsm`.
        generator: of the corner.

    Returns:
        Perturbed images of the same shape, detached.
    """
    images = images.detach()
    noise = normal(images.shape, images, generator)
    half = ball.eps / 2
    corner = ball.project(ball.step(images, noise, half), images)
    return ball.project(ball.step(corner, value_and_gradient(objective, corner)[1], half), images)
