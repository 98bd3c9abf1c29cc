"""Min-max training on the batch loss (Madry et al. 2018, equation 2.1): an image moves once, for all its tuples."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dml.common.checks import known
from dml.defenses.adversarial import Adversarial, Start
from dml.defenses.base import Perturbs
from dml.losses.base import BatchLoss, Loss, TupleLoss
from dml.losses.miners.base import Tuples
from dml.models.embedder import evaluating

ROLES = Tuples._fields
NONE, AFTER, EACH = REMINE = ("none", "after", "each")


class Joint(Adversarial):
    """Adversarial training as for classifiers: PGD maximises the loss of the batch, hinge included.

    With a loss on tuples, each image of the batch has one perturbation. All tuples in which it occurs in one of the
    roles ``targets`` share it; in the other roles the image stays clean. PGD maximises the sum of the tuples' losses.
    Images without effect on that sum stay at their random start. :class:`dml.defenses.robust.Robust` differs in three
    ways: each slot of a tuple moves by itself, the other roles stay fixed, and the hinge is left out.
    :class:`dml.defenses.amd.AMD` moves each slot by itself, but all three together.

    With a loss on the batch, all images move at once: as queries and as the reference they are compared with.

    PGD runs with BatchNorm in evaluation mode, as an attacker would. The training pass sees the perturbed batch, and
    the clean batch as well if some role stays clean. If none does, tuples are mined on clean embeddings computed in
    evaluation mode, so that BatchNorm's running statistics are those of the perturbed images.

    Args:
        eps: radius of the l-inf ball, of pixels in [0, 1].
        steps: PGD steps, from a uniform random start.
        targets: roles in which an image is perturbed: any of ``anchor``, ``positive`` and ``negative``.
        remine: when tuples are mined. ``none``: once, on clean embeddings. ``after``: again on the embeddings of the
            perturbed batch, for the training loss. ``each``: as ``after``, and on the current embeddings before each
            PGD step.
        step_size: of a step, pixel units; ``2 * eps / steps`` if None.
        ramp: share of the training over which the radius, and the step with it, grows from 0.
        noise: see :class:`dml.defenses.adversarial.Adversarial`.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        eps: float = 8 / 255,
        steps: int = 5,
        targets: Sequence[Literal["anchor", "positive", "negative"]] = ROLES,
        remine: Literal["none", "after", "each"] = NONE,
        step_size: float | None = None,
        ramp: float = 0.0,
        noise: Start = None,
    ) -> None:
        super().__init__(eps, steps, step_size, ramp, noise)
        if not targets:
            raise ValueError("targets is an empty list; it must name at least one role")
        for role in targets:
            known("targets", role, ROLES)
        if len(set(targets)) < len(targets):
            raise ValueError(f"targets is {list(targets)}; it must list each role once")
        known("remine", remine, REMINE)
        self.targets = list(targets)
        self.remine = remine

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Loss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        """Return the losses of the perturbed batch; see :meth:`dml.defenses.base.Defense.forward`."""
        if isinstance(loss, TupleLoss):
            return self._on_tuples(model, images, labels, loss, generator, progress)
        self._check(loss)
        with evaluating(model), evaluating(loss):
            perturbed = self.perturb(
                images, lambda changed: loss.natural(model(changed), labels, generator), generator, progress
            )
        return loss.natural(model(perturbed), labels, generator)

    def perturbs(self, tuples: bool) -> Perturbs:
        """See :meth:`dml.defenses.base.Defense.perturbs`."""
        if not tuples:
            return Perturbs(("image",), "batch", None)
        return Perturbs(tuple(self.targets), "image", self.remine)

    def _on_tuples(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: TupleLoss,
        generator: torch.Generator,
        progress: float,
    ) -> Tensor:
        """Return the losses of tuples (T,)."""
        clean = model(images) if len(self.targets) < len(ROLES) else None
        with evaluating(model), evaluating(loss):
            # Not under no_grad: older versions of autocast keep the weights that they cast there, without gradient.
            fixed = (model(images) if clean is None else clean).detach()
            tuples = None if self.remine == EACH else loss.mine(fixed, labels, generator)

            def objective(changed: Tensor) -> Tensor:
                embeddings = model(changed)
                current = loss.mine(embeddings.detach(), labels, generator) if tuples is None else tuples
                values = loss(*self._pick(current, embeddings, fixed))
                # One value per image, whose sum over the batch is the sum over tuples.
                return values.new_zeros(len(labels)).index_add(0, current.anchor, values)

            perturbed = self.perturb(images, objective, generator, progress)
        embeddings = model(perturbed)
        if self.remine != NONE:
            tuples = loss.mine(embeddings.detach(), labels, generator)
        return loss(*self._pick(tuples, embeddings, embeddings if clean is None else clean))

    def _pick(self, tuples: Tuples, perturbed: Tensor, clean: Tensor) -> list[Tensor]:
        """Return the embeddings (T, D) of each role, given those of both batches (B, D)."""
        return [(perturbed if role in self.targets else clean)[rows] for role, rows in zip(ROLES, tuples, strict=True)]

    def _check(self, loss: BatchLoss) -> None:
        name = type(loss).__name__
        if len(self.targets) < len(ROLES):
            raise ValueError(f"targets is {self.targets}; {name} has no roles, so it must be left at all three")
        if self.remine != NONE:
            raise ValueError(f"remine is {self.remine!r}; {name} has no tuples to mine, so it must be 'none'")
