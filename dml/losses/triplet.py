"""Triplet loss."""

from torch import Tensor

from dml.losses.base import Average, TupleLoss, difference


class Triplet(TupleLoss):
    """max(0, d(a, p) - d(a, n) + margin) (Schroff et al. 2015, equation 1, with plain distances).

    Args:
        classes, dimension, miner, average: see :class:`dml.losses.base.TupleLoss`.
        margin: how much farther than the positive the negative should be.
    """

    def __init__(
        self, classes: int, dimension: int, *, miner: str, average: Average = "all", margin: float = 0.2
    ) -> None:
        super().__init__(classes, dimension, miner=miner, average=average)
        self.margin = margin

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Return the losses (T,) of embeddings (T, D)."""
        return self.term((difference(anchor, positive, negative) + self.margin).clamp_min(0))
