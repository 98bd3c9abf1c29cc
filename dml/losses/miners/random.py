"""Tuples at random."""

import torch
from torch import Tensor

from dml.losses.miners.base import Tuples, draw, masks


def random_tuples(embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tuples:
    """Select a random positive and a random negative for each anchor, given embeddings (B, D) and labels (B,)."""
    same, other = masks(labels)
    anchor = (same.any(1) & other.any(1)).nonzero().squeeze(1)
    return Tuples(anchor, draw(same[anchor].float(), generator), draw(other[anchor].float(), generator))
