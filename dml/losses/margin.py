"""Margin loss."""

import torch
from torch import Tensor, nn

from dml.common.checks import at_least
from dml.losses.base import Average, TupleLoss, distance


class Margin(TupleLoss):
    """max(0, margin + d(a, p) - beta) + max(0, margin - d(a, n) + beta) (Wu et al. 2017, section 4, with one beta).

    Beta is the distance that separates positives from negatives. It is a parameter of the loss: the optimiser trains it
    with the model, at the same weight decay and, unless ``loss_learning_rate`` says otherwise, learning rate. Beta has
    no regulariser, and no offsets per class or image.

    A tuple is the two pairs (anchor, positive) and (anchor, negative). The default reducer of pytorch-metric-learning
    divides by the number of pairs of either kind that cost something: with K such pairs in T tuples, its loss is T / K
    times that with ``average: all``; ``nonzero`` counts the two kinds apart.

    Args:
        classes, dimension, miner, average: see :class:`dml.losses.base.TupleLoss`; the paper has the miner
            ``distance_weighted``.
        margin: how much nearer than beta a positive should be, and how much farther a negative (alpha in the paper).
        beta: its value before training.

    Raises:
        ValueError: the margin or beta is negative.
    """

    def __init__(
        self,
        classes: int,
        dimension: int,
        *,
        miner: str,
        average: Average = "all",
        margin: float = 0.2,
        beta: float = 1.2,
    ) -> None:
        super().__init__(classes, dimension, miner=miner, average=average)
        at_least("margin", margin, 0)
        at_least("beta", beta, 0)
        self.margin = margin
        self.beta = nn.Parameter(torch.tensor(float(beta)))

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Return the losses (T,) of embeddings (T, D)."""
        pull = (self.margin + distance(anchor, positive) - self.beta).clamp_min(0)
        push = (self.margin - distance(anchor, negative) + self.beta).clamp_min(0)
        return self.term(pull) + self.term(push)
