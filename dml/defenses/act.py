"""Anti-collapse triplet (ACT), the defence of Zhou et al. 2021 (arXiv 2106.03614)."""

import torch
from torch import Tensor, nn

from dml.defenses.adversarial import Start
from dml.defenses.roles import RolesDefense
from dml.losses.base import Loss, distance


class ACT(RolesDefense):
    """Trains on tuples whose positive and negative are drawn together.

    Both are perturbed so that d(p~, n~) becomes as small as possible, and the loss costs (a, p~, n~): the model learns
    to tell them apart again.

    Args:
        eps: radius of the l-inf ball, of pixels in [0, 1].
        steps: PGD steps, from a uniform random start.
        step_size: of a step, pixel units; ``2 * eps / steps`` if None.
        ramp: share of the training over which the radius, and the step with it, grows from 0.
        noise: see :class:`dml.defenses.adversarial.Adversarial`.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        eps: float = 8 / 255,
        steps: int = 32,
        step_size: float | None = None,
        ramp: float = 0.0,
        noise: Start = None,
    ) -> None:
        super().__init__(eps, steps, step_size, ramp, noise)

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Loss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        """Return the losses of collapsed tuples (T,); see :meth:`dml.defenses.base.Defense.forward`."""
        embeddings = model(images)
        tuples = self.mine(embeddings, labels, loss, generator)

        def collapse(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
            return -distance(positive, negative)

        roles = ("positive", "negative")
        return loss(**self.embed(model, images, tuples, embeddings, roles, collapse, generator, progress))
