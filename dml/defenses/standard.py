"""No defence: training on natural pictures."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dml.losses import TupleLoss
from dml.models.embedder import Embedder


@dataclass(frozen=True)
class Standard:
    """The loss of tuples mined on, and made of, the clean batch."""

    def __call__(
        self,
        model: Embedder,
        images: Tensor,
        labels: Tensor,
        tuple_loss: TupleLoss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        embeddings = model(images)
        tuples = tuple_loss.mine(embeddings.detach(), labels, generator)
        return tuple_loss.cost(*tuples.pick(embeddings))
