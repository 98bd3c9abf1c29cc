"""Carlini and Wagner's l2 attack (2017, section VI): the smallest perturbation that fools, not the worst in a ball."""

import torch
from torch import Tensor

from dml.attacks.balls import spread
from dml.attacks.objectives.base import Objective

INSIDE = 1 - 1e-6  # images are held this far inside (0, 1), where tanh can be inverted


def carlini_wagner(
    images: Tensor,
    objective: Objective,
    *,
    steps: int = 100,
    searches: int = 6,
    learning_rate: float = 0.01,
    first_weight: float = 1.0,
) -> Tensor:
    """Minimise ``|x~ - x|^2 + weight * max(0, -objective(x~))``, with one weight per image, found by bisection.

    Args:
        images: (B, 3, H, W) in [0, 1].
        objective: images -> (B,); above 0 an image fools.
        steps: Adam steps for each weight.
        searches: weights tried: times ten until an image fools, then by bisection.
        learning_rate: of Adam, in the space of the inverse tanh.
        first_weight: where the search begins.

    Returns:
        For each image the nearest one found that fools; the image itself, bit for bit, where none was found.
    """
    images = images.detach()
    origin = torch.atanh((images * 2 - 1) * INSIDE)
    best, best_length = images, torch.full((len(images),), torch.inf, dtype=images.dtype, device=images.device)
    weight = torch.full_like(best_length, first_weight)
    low, high = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
    for _ in range(searches):
        position = origin.clone().requires_grad_(True)
        optimiser = torch.optim.Adam([position], lr=learning_rate)
        fooled = torch.zeros_like(weight, dtype=torch.bool)
        for _ in range(steps):
            with torch.enable_grad():
                trial = (torch.tanh(position) + 1) / 2
                value = objective(trial)
                square = (trial - images).flatten(1).square().sum(1)
                cost = (square + weight * (-value).clamp_min(0)).sum()
                (gradient,) = torch.autograd.grad(cost, position)
                position.grad = gradient.nan_to_num(0)
            with torch.no_grad():
                met = ~(value <= 0)
                nearer = met & (square < best_length)
                best = torch.where(spread(nearer), trial, best)
                best_length = torch.where(nearer, square, best_length)
                fooled |= met
            optimiser.step()
        high = torch.where(fooled, torch.minimum(high, weight), high)
        low = torch.where(fooled, low, torch.maximum(low, weight))
        weight = torch.where(high.isinf(), weight * 10, (low + high) / 2)
    return best.detach()
