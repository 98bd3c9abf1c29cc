"""What all miners share. A miner: embeddings and labels of a batch -> (anchor, positive, negative), one per anchor.

Every miner has the same signature and returns row numbers of the batch. An anchor needs another image of its class and
an image of another class in the batch; an anchor that lacks either is left out.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Tuples(NamedTuple):
    """Row numbers (T,) of the three roles; entry t of each field belongs to tuple t."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor

    def pick(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the embeddings (T, D) of the three roles, given those of the batch (B, D)."""
        return embeddings[self.anchor], embeddings[self.positive], embeddings[self.negative]


Miner = Callable[[Tensor, Tensor, torch.Generator], Tuples]
"""Unit embeddings (B, D), labels (B,) and the generator of every draw -> tuples."""


def pairwise_distance(embeddings: Tensor) -> Tensor:
    """Return Euclidean distances (B, B) between unit embeddings (B, D)."""
    with torch.autocast(embeddings.device.type, enabled=False):  # neighbours differ by less than bfloat16 resolves
        return (2 - 2 * embeddings @ embeddings.T).clamp_min(0).sqrt()


def masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return masks (B, B): another image of the same class, and an image of another class."""
    equal = labels[:, None] == labels[None, :]
    return equal & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~equal


def draw(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one column per row, with probability proportional to the weights (T, B).

    Embeddings that are not numbers give weights that are none: any column will do, for the training loop tells.
    """
    if not len(weights):
        return torch.empty(0, dtype=torch.long, device=weights.device)
    weights = weights.nan_to_num(1.0)
    return torch.multinomial(weights.cpu(), 1, generator=generator).squeeze(1).to(weights.device)
