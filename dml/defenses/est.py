"""Embedding-shifted triplet (EST), the defence of Zhou et al. 2020 (arXiv 2002.11293)."""

import torch
from torch import Tensor, nn

from dml.defenses.roles import ROLES, RolesDefense
from dml.losses.base import Loss, distance
from dml.models.embedder import evaluating


class EST(RolesDefense):
    """Trains on tuples whose three embeddings are shifted as far as possible, each in any direction.

    Every image x of a tuple is perturbed so that d(x~, x) becomes as large as possible, and the loss costs
    (a~, p~, n~). No clean embedding enters the loss.

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
        noise: float | None = None,
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
        """Return the losses of shifted tuples (T,); see :meth:`dml.defenses.base.Defense.forward`."""
        # Detached, not under no_grad: autocast of older versions of torch keeps weights cast there without gradient.
        embeddings = model(images).detach()
        tuples = self.mine(embeddings, labels, loss, generator)
        # The shift is that of the perturbation alone, so both ends are embedded in evaluation mode.
        with evaluating(model):
            home = tuples.pick(model(images).detach())

        def shift(*changed: Tensor) -> Tensor:
            return torch.stack([distance(*ends) for ends in zip(changed, home, strict=True)]).sum(0)

        return loss(**self.embed(model, images, tuples, embeddings, ROLES, shift, generator, progress))
