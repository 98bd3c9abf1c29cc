"""What all losses share: the distance, and a loss together with the miner that feeds it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dml.losses.mining import Miner

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances (T,) between rows of (T, D); its gradient is zero, not undefined, where they coincide."""
    return (first - second).square().sum(-1).clamp_min(1e-14).sqrt()


@dataclass(frozen=True)
class TupleLoss:
    """A loss on tuples: which tuples of a batch are looked at, and what each of them costs.

    Attributes:
        mine: embeddings (B, D), labels (B,), generator -> tuples.
        cost: embeddings (T, D) of anchors, positives and negatives -> (T,), one value a tuple.
    """

    mine: Miner
    cost: Loss
