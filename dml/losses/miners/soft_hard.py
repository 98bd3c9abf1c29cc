"""Soft-hard tuples."""

import torch
from torch import Tensor

from dml.losses.miners.base import Tuples, draw, masks, pairwise_distance


def soft_hard(embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tuples:
    """Select a random one of the hard positives and of the hard negatives (Roth et al. 2020; S of HM[S, .]).

    A positive is hard if it is farther than the nearest negative, a negative if it is nearer than the farthest
    positive. Where there is none, any will do. An anchor is never its own positive.

    Args:
        embeddings, labels: of a batch, (B, D) and (B,).
        generator: of the draws.
    """
    same, other = masks(labels)
    anchor = (same.any(1) & other.any(1)).nonzero().squeeze(1)
    positive, negative, distance = same[anchor], other[anchor], pairwise_distance(embeddings)[anchor]
    hard_positive = positive & (distance > distance.masked_fill(~negative, torch.inf).amin(1, keepdim=True))
    hard_negative = negative & (distance < distance.masked_fill(~positive, -torch.inf).amax(1, keepdim=True))
    hard_positive = torch.where(hard_positive.any(1, keepdim=True), hard_positive, positive)
    hard_negative = torch.where(hard_negative.any(1, keepdim=True), hard_negative, negative)
    return Tuples(anchor, draw(hard_positive.float(), generator), draw(hard_negative.float(), generator))
