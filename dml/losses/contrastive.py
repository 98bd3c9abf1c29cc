"""Contrastive loss."""

from torch import Tensor

from dml.losses.base import Average, TupleLoss, distance


class Contrastive(TupleLoss):
    """max(0, d(a, p) - positive_margin) + max(0, negative_margin - d(a, n)) (Hadsell et al. 2006, unsquared).

    A tuple is the two pairs (anchor, positive) and (anchor, negative).

    Args:
        classes, dimension, miner, average: see :class:`dml.losses.base.TupleLoss`.
        positive_margin: positives nearer than this cost nothing.
        negative_margin: negatives farther than this cost nothing.
    """

    def __init__(
        self,
        classes: int,
        dimension: int,
        *,
        miner: str,
        average: Average = "all",
        positive_margin: float = 0.0,
        negative_margin: float = 1.0,
    ) -> None:
        super().__init__(classes, dimension, miner=miner, average=average)
        self.positive_margin = positive_margin
        self.negative_margin = negative_margin

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Return the losses (T,) of embeddings (T, D)."""
        pull = (distance(anchor, positive) - self.positive_margin).clamp_min(0)
        push = (self.negative_margin - distance(anchor, negative)).clamp_min(0)
        return self.term(pull) + self.term(push)
