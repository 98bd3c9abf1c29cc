"""What all losses share: the distance, and the two kinds of loss.

A :class:`TupleLoss` selects (anchor, positive, negative) tuples and costs each. A :class:`BatchLoss` costs each query
relative to a whole set of reference embeddings. Neither reduces its values: the training loop takes their mean.
"""

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dml.common.checks import at_least, known
from dml.common.table import find
from dml.losses.miners import MINERS
from dml.losses.miners.base import Miner, Tuples

Average = Literal["all", "nonzero"]
UNIT = 0.05  # that the length of an embedding may differ from 1; bfloat16 rounds


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Return Euclidean distances (T,) between rows of (T, D); where rows coincide, the gradient is zero."""
    return (first - second).square().sum(-1).clamp_min(1e-14).sqrt()


def difference(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Return d(a, p) - d(a, n), one per tuple (T,), of embeddings (T, D): a triplet loss without margin and hinge."""
    return distance(anchor, positive) - distance(anchor, negative)


def squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return squared Euclidean distances (T,) between rows of (T, D)."""
    return (first - second).square().sum(1)


class Loss(nn.Module, ABC):
    """A metric loss. It may own parameters (proxies, margins), which are trained together with the model.

    Whoever builds a loss seeds torch's global generator first (:func:`dml.common.randomness.seeded_global`), since
    parameters may be initialised at random. In evaluation mode a call must leave the loss as it was: a defence's
    adversary calls it many times per step.

    Args:
        classes: number of training classes; labels are 0 to classes - 1.
        dimension: length D of an embedding.

    Raises:
        ValueError: fewer than two classes, or a dimension below 1.
    """

    def __init__(self, classes: int, dimension: int) -> None:
        super().__init__()
        at_least("classes", classes, 2)
        at_least("dimension", dimension, 1)
        self.classes = classes
        self.dimension = dimension

    @abstractmethod
    def natural(self, embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return the losses of a clean batch: one value per tuple (T,), or one per query (B,).

        Args:
            embeddings: (B, D) of unit length.
            labels: (B,).
            generator: used for every random draw.
        """


class TupleLoss(Loss):
    """A loss on tuples: the tuples that it selects in a batch, and what each of them costs.

    Args:
        classes, dimension: see :class:`Loss`.
        miner: how tuples are selected, a key of :data:`dml.losses.miners.MINERS`.
        average: over ``all`` tuples, or over those whose term is not 0 (``nonzero``), for each term of the loss by
            itself, as pytorch-metric-learning does by default for pairs and triplets. The values of a batch are then
            scaled together, so that those of two batches do not compare.

    Raises:
        ValueError: the miner or the average is unknown.
    """

    def __init__(self, classes: int, dimension: int, *, miner: str, average: Average = "all") -> None:
        super().__init__(classes, dimension)
        known("average", average, get_args(Average))
        self.miner, self.average = miner, average
        self._select: Miner = find(MINERS, miner, "miner")  # a wrong line of the table is told before a training

    def mine(self, embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tuples:
        """Return the tuples of a batch: embeddings (B, D) without gradient and labels (B,) -> row numbers.

        Raises:
            ValueError: the batch has none, or embeddings are not of unit length.
        """
        lengths = embeddings.float().norm(dim=1)
        # Normalising leaves a zero vector zero; what is not a number, the training loop tells.
        if bool((((lengths - 1).abs() > UNIT) & (lengths > 0)).any()):
            raise ValueError(
                f"the embeddings have lengths of {float(lengths.min()):.2g} to {float(lengths.max()):.2g}; tuples are "
                "selected among unit vectors, so the model must end with torch.nn.functional.normalize"
            )
        tuples = self._select(embeddings, labels, generator)
        if not len(tuples.anchor):
            raise ValueError("the batch has no tuple; it needs two images of a class, and one of another")
        return tuples

    @abstractmethod
    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Return the losses (T,) of tuples, given the embeddings (T, D) of each role."""

    def term(self, values: Tensor) -> Tensor:
        """Return a term (T,) of the loss, scaled so that its mean over all tuples is the chosen average."""
        if self.average == "all":
            return values
        return values * (len(values) / values.count_nonzero().clamp_min(1))

    def natural(self, embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return one loss per tuple (T,) of a clean batch; see :meth:`Loss.natural`."""
        tuples = self.mine(embeddings.detach(), labels, generator)
        return self(*tuples.pick(embeddings))


class BatchLoss(Loss):
    """A loss on the similarities of a batch: what each query costs relative to a reference set.

    The queries and the references are apart, so that a perturbed query can be compared with clean references.
    """

    @abstractmethod
    def forward(
        self, queries: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor, own: Tensor
    ) -> Tensor:
        """Return one loss per query (B,).

        Args:
            queries: (B, D) embeddings of unit length.
            labels: (B,) of the queries.
            reference: (N, D) embeddings that they are compared with.
            reference_labels: (N,).
            own: (B,) row of each query's own image in the reference, -1 if it has none. That row is never the query's
                positive; :func:`pairs` leaves it out.
        """

    def natural(self, embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return one loss per query (B,) of a clean batch, which is its own reference; see :meth:`Loss.natural`."""
        return self(embeddings, labels, embeddings, labels, torch.arange(len(labels), device=labels.device))


def pairs(labels: Tensor, reference_labels: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Return masks (B, N): references of the query's class other than itself, and references of other classes.

    Args:
        labels, reference_labels, own: see :meth:`BatchLoss.forward`.
    """
    same = labels[:, None] == reference_labels
    itself = own[:, None] == torch.arange(len(reference_labels), device=own.device)
    return same & ~itself, ~same
