"""Min-max training on tuples, every slot by itself: AMD in the tables of Zhou and Patel (2022, arXiv 2203.01439)."""

import torch
from torch import Tensor, nn

from dml.defenses.adversarial import Start
from dml.defenses.base import Perturbs
from dml.defenses.roles import ROLES, RolesDefense
from dml.losses.base import Loss, difference


class AMD(RolesDefense):
    """Trains on tuples made as hard as they can be.

    Anchor, positive and negative are perturbed jointly to maximise d(a~, p~) - d(a~, n~), and the loss costs
    (a~, p~, n~). :class:`dml.defenses.hardness.Hardness` stops at a given hardness; this one never does. In
    :class:`dml.defenses.joint.Joint` an image moves once, for all its tuples, and the hinge takes part.

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
        steps: int = 8,
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
        """Return the losses of perturbed tuples (T,); see :meth:`dml.defenses.base.Defense.forward`."""
        embeddings = model(images).detach()  # no clean embedding enters the loss
        tuples = self.mine(embeddings, labels, loss, generator)
        return loss(**self.embed(model, images, tuples, embeddings, ROLES, difference, generator, progress))

    def perturbs(self, tuples: bool) -> Perturbs:
        """See :meth:`dml.defenses.base.Defense.perturbs`."""
        return Perturbs(ROLES, "tuple")
