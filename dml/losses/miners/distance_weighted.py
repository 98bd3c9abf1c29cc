"""Negatives drawn evenly over distances."""

import torch
from torch import Tensor

from dml.losses.miners.base import Tuples, draw, masks, pairwise_distance


def distance_weighted(
    embeddings: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
) -> Tuples:
    """Select a random positive, and draw a negative with weight 1 / q(d) (Wu et al. 2017, section 3).

    q(d) is the density of distances between random points of the unit sphere. Distances below ``cutoff`` count as the
    cutoff. Negatives beyond ``nonzero_loss_cutoff`` are drawn only where there is no other.
    """
    same, other = masks(labels)
    anchor = (same.any(1) & other.any(1)).nonzero().squeeze(1)
    dimension = embeddings.shape[1]
    distance = pairwise_distance(embeddings)[anchor].double().clamp(min=cutoff, max=1.999)
    log_density = (dimension - 2) * distance.log() + (dimension - 3) / 2 * (1 - distance.square() / 4).log()
    candidate = other[anchor]
    near = candidate & (distance < nonzero_loss_cutoff)
    usable = torch.where(near.any(1, keepdim=True), near, candidate)
    log_weight = (-log_density).masked_fill(~usable, -torch.inf)
    weight = (log_weight - log_weight.max(1, keepdim=True).values).exp()
    return Tuples(anchor, draw(same[anchor].float(), generator), draw(weight, generator))
