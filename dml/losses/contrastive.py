"""Contrastive loss."""

from dataclasses import dataclass

from torch import Tensor

from dml.losses.base import distance


@dataclass(frozen=True)
class Contrastive:
    """max(0, d(a, p) - positive_margin) + max(0, negative_margin - d(a, n)) (Hadsell et al. 2006, unsquared).

    A tuple is the two pairs (anchor, positive) and (anchor, negative).

    Attributes:
        positive_margin: positives nearer than this cost nothing.
        negative_margin: negatives farther than this cost nothing.
    """

    positive_margin: float = 0.0
    negative_margin: float = 1.0

    def __call__(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        pull = (distance(anchor, positive) - self.positive_margin).clamp_min(0)
        push = (self.negative_margin - distance(anchor, negative)).clamp_min(0)
        return pull + push
