"""What every defence is: a way to turn a batch into the losses that training descends."""

from typing import Protocol

import torch
from torch import Tensor

from dml.losses import TupleLoss
from dml.models.embedder import Embedder


class Defense(Protocol):
    """Called once a step with the model in training mode.

    Args:
        model: pictures -> unit embeddings.
        images: the clean batch (B, 3, H, W) in [0, 1].
        labels: (B,).
        tuple_loss: miner and loss.
        generator: of every random draw that the defence makes.
        progress: share of the training that is done, from 0 to 1, for a defence that changes with it.

    Returns:
        (T,), one differentiable loss a tuple; the trainer takes their mean.
    """

    def __call__(
        self,
        model: Embedder,
        images: Tensor,
        labels: Tensor,
        tuple_loss: TupleLoss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor: ...
