"""Square Attack (Andriushchenko et al. 2020): random search on the objective's values, without gradients."""

import math

import torch
from torch import Tensor

from dml.attacks.balls import Linf, spread
from dml.attacks.objectives.base import Objective
from dml.attacks.optimisers.pgd import value_of

SHARE = 0.8  # of the image that the first squares cover
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 tries: where the covered share is halved


@torch.no_grad()
def square(
    images: Tensor,
    objective: Objective,
    ball: Linf,
    *,
    tries: int,
    goal: float | None = None,
    generator: torch.Generator,
) -> Tensor:
    """Recolour random squares at the edge of the l-inf ball, and keep what raises the objective.

    Args:
        images: (B, 3, H, W) in [0, 1].
        objective: images -> (B,), higher is worse for the defender, each value from its own image alone.
        ball: how far a pixel value may move.
        tries: evaluations of the objective, the first being of vertical stripes.
        goal: stop once every image has reached this value, or None.
        generator: of places and colours.

    Returns:
        The best images found, of the same shape, detached.
    """
    images = images.detach()
    count, channels, height, width = images.shape
    eps = spread(ball.eps, images)

    def signs(*shape: int) -> Tensor:
        return (torch.randint(0, 2, shape, generator=generator) * 2 - 1).to(images)

    best = ball.project(images + eps * signs(count, channels, 1, width), images)
    best_value = value_of(objective, best)
    down, across = (torch.arange(length, device=images.device) for length in (height, width))
    down, across = down.view(1, -1, 1), across.view(1, 1, -1)
    for done in range(1, tries):
        if goal is not None and bool((best_value >= goal).all()):
            break
        side = side_length(done / tries, height, width)
        top = torch.randint(0, height - side + 1, (count, 1, 1), generator=generator).to(images.device)
        left = torch.randint(0, width - side + 1, (count, 1, 1), generator=generator).to(images.device)
        inside = (down >= top) & (down < top + side) & (across >= left) & (across < left + side)
        colour = images + eps * signs(count, channels, 1, 1)
        trial = ball.project(torch.where(inside[:, None], colour, best), images)
        value = value_of(objective, trial)
        ahead = value > best_value
        best, best_value = torch.where(spread(ahead), trial, best), torch.where(ahead, value, best_value)
    return best


def side_length(progress: float, height: int, width: int) -> int:
    """Return the side in pixels of the squares after a share of the tries: large at first, one pixel at last."""
    share = SHARE / 2 ** sum(progress * 10_000 > bound for bound in HALVINGS)
    return min(max(round(math.sqrt(share * height * width)), 1), height, width)
