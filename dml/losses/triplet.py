"""Triplet loss."""

from dataclasses import dataclass

from torch import Tensor

from dml.losses.base import distance


@dataclass(frozen=True)
class Triplet:
    """max(0, d(a, p) - d(a, n) + margin) (Schroff et al. 2015, equation 1, with plain distances).

    Attributes:
        margin: how much farther than the positive the negative should be.
    """

    margin: float = 0.2

    def __call__(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return (distance(anchor, positive) - distance(anchor, negative) + self.margin).clamp_min(0)
