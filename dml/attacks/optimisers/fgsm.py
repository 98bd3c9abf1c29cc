"""One-step attacks: FGSM (Goodfellow et al. 2015) and R-FGSM (Tramèr et al. 2018)."""

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.optimisers.pgd import Objective, slope


def fgsm(images: Tensor, objective: Objective, ball: Ball) -> Tensor:
    """One step of length eps from the picture itself.

    An objective that is flat at the picture, as embedding shift is, leaves the picture where it is.

    Args:
        images: (B, 3, H, W) in [0, 1].
        objective: pictures -> (B,), higher is worse for the defender.
        ball: how far a picture may move.

    Returns:
        Perturbed pictures of the same shape, detached.
    """
    images = images.detach()
    return ball.project(ball.step(images, slope(objective, images)[1], ball.eps), images)


def r_fgsm(images: Tensor, objective: Objective, ball: Ball, *, generator: torch.Generator) -> Tensor:
    """Half of eps to a random corner of the ball, the other half along the gradient found there.

    Args and returns as :func:`fgsm`; ``generator`` draws the corner.
    """
    images = images.detach()
    noise = torch.randn(images.shape, generator=generator).to(images)
    half = ball.eps / 2
    corner = ball.project(ball.step(images, noise, half), images)
    return ball.project(ball.step(corner, slope(objective, corner)[1], half), images)
