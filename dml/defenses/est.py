"""Embedding-shifted triplet (EST), the defence of Zhou et al. 2020 (arXiv 2002.11293)."""

import torch
from torch import Tensor, nn

from dml.defenses.adversarial import Adversarial, Start
from dml.losses.base import Loss, distance
from dml.models.embedder import evaluating


class EST(Adversarial):
    """Trains on a batch whose embeddings are shifted as far as possible, each in any direction.

    Every image x of the batch is perturbed once so that d(x~, x) becomes as large as possible. Tuples are mined on the
    shifted embeddings and cost (a~, p~, n~), as in the authors' code; no clean embedding enters the loss. PGD runs with
    BatchNorm in evaluation mode, as an attacker would. It needs no tuples: any loss can follow.

    Args:
        eps: radius of the l-inf ball, of pixels in [0, 1].
        steps: PGD steps, from a uniform random start: the distance has no gradient at x itself.
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
        """Return the losses of the shifted batch; see :meth:`dml.defenses.base.Defense.forward`."""
        with evaluating(model):
            # Not under no_grad: older versions of autocast keep the weights that they cast there, without gradient.
            home = model(images).detach()
            perturbed = self.perturb(images, lambda changed: distance(model(changed), home), generator, progress)
        return loss.natural(model(perturbed), labels, generator)
