"""The paper's robust formulation (arXiv 2102.07265): one perturbed element in every tuple."""

from typing import Literal

import torch
from torch import Tensor, nn

from dml.attacks.balls import Linf
from dml.attacks.objectives.base import Objective
from dml.attacks.objectives.tuples import role_objective
from dml.attacks.optimisers.pgd import pgd
from dml.common.checks import at_least, known, linf_radius
from dml.defenses.base import Defense
from dml.losses.base import BatchLoss, Loss, TupleLoss
from dml.models.embedder import evaluating

QUERY = "query"
TARGETS = ("positive", "negative", "anchor", QUERY)


class Robust(Defense):
    """Trains on tuples with one perturbed role, or on perturbed queries.

    With a loss on tuples, these are mined on clean embeddings. PGD then perturbs the element in role ``target`` against
    the clean embeddings of the other two, which stay fixed. The perturbed image replaces that element in that tuple
    only: the same image is clean wherever else it occurs.

    With a loss on the batch, ``target`` is ``query``: PGD maximises the loss of every image as a query to the clean
    batch, whose embeddings stay fixed.

    The fixed embeddings are those of the training pass. PGD runs with BatchNorm in evaluation mode, as an attacker
    would.

    Args:
        eps: radius of the l-inf ball, of pixels in [0, 1].
        steps: PGD steps, from a uniform random start.
        target: what is perturbed: ``positive``, ``negative`` or ``anchor`` of each tuple, or ``query``.
        step_size: of a step, pixel units; ``2 * eps / steps`` if None.
        ramp: share of the training over which the radius, and the step with it, grows from 0.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        eps: float = 8 / 255,
        steps: int = 5,
        target: Literal["positive", "negative", "anchor", "query"] = "positive",
        step_size: float | None = None,
        ramp: float = 0.0,
    ) -> None:
        super().__init__()
        linf_radius("eps", eps)
        at_least("steps", steps, 1)
        known("target", target, TARGETS)
        if step_size is not None and not step_size > 0:
            raise ValueError(f"step_size is {step_size}; it must be above 0")
        if not 0 <= ramp <= 1:
            raise ValueError(f"ramp is {ramp}; it must lie between 0 and 1")
        self.eps = eps
        self.steps = steps
        self.target = target
        self.step_size = step_size
        self.ramp = ramp

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Loss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        """Return the losses with one perturbed element; see :meth:`dml.defenses.base.Defense.forward`."""
        self._check(loss)
        grown = min(1.0, progress / self.ramp) if self.ramp else 1.0
        embeddings = model(images)
        fixed = embeddings.detach()
        if self.target == QUERY:
            own = torch.arange(len(labels), device=labels.device)
            with evaluating(model), evaluating(loss):
                perturbed = self._perturb(
                    images, lambda changed: loss(model(changed), labels, fixed, labels, own), grown, generator
                )
            return loss(model(perturbed), labels, embeddings, labels, own)
        tuples = loss.mine(fixed, labels, generator)
        with evaluating(model):
            objective = role_objective(model, self.target, *tuples.pick(fixed))
            perturbed = self._perturb(images[getattr(tuples, self.target)], objective, grown, generator)
        roles = dict(zip(tuples._fields, tuples.pick(embeddings), strict=True))
        roles[self.target] = model(perturbed)
        return loss(**roles)

    def score(self, scores: dict[str, float]) -> float:
        """Select the epoch by adversarial R@1."""
        return scores["adversarial"]

    def _perturb(self, images: Tensor, objective: Objective, grown: float, generator: torch.Generator) -> Tensor:
        """Run PGD with ``grown``, a share from 0 to 1, of the radius and of the step."""
        return pgd(
            images,
            objective,
            Linf(grown * self.eps),
            steps=self.steps,
            step_size=grown * (2 * self.eps / self.steps if self.step_size is None else self.step_size),
            best=False,
            generator=generator,
        )

    def _check(self, loss: Loss) -> None:
        name = type(loss).__name__
        if self.target == QUERY and not isinstance(loss, BatchLoss):
            raise ValueError(
                f"target is 'query'; {name} costs tuples, so it must be 'positive', 'negative' or 'anchor'"
            )
        if self.target != QUERY and not isinstance(loss, TupleLoss):
            raise ValueError(f"target is {self.target!r}; {name} costs whole queries, so it must be 'query'")
