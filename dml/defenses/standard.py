"""No defence: training on natural images."""

import torch
from torch import Tensor, nn

from dml.defenses.base import Defense
from dml.losses.base import Loss


class Standard(Defense):
    """The loss of the clean batch."""

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Loss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        """Return the losses of the clean batch; see :meth:`dml.defenses.base.Defense.forward`."""
        return loss.natural(model(images), labels, generator)
