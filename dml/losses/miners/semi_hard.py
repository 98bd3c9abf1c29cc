"""Semi-hard tuples."""

import torch
from torch import Tensor

from dml.losses.miners.base import Tuples, draw, masks, pairwise_distance


def semi_hard(embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tuples:
    """Select a random positive, and the nearest negative that is farther than it (FaceNet, Schroff et al. 2015).

    Where every negative is nearer than the positive, select the farthest of them: the least hard one.
    """
    same, other = masks(labels)
    anchor = (same.any(1) & other.any(1)).nonzero().squeeze(1)
    positive = draw(same[anchor].float(), generator)
    distance = pairwise_distance(embeddings)[anchor]
    to_positive = distance.gather(1, positive[:, None])
    candidate = other[anchor]
    farther = candidate & (distance > to_positive)
    nearest_farther = distance.masked_fill(~farther, torch.inf).argmin(1)
    farthest = distance.masked_fill(~candidate, -torch.inf).argmax(1)
    return Tuples(anchor, positive, torch.where(farther.any(1), nearest_farther, farthest))
