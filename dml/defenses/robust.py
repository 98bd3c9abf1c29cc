"""The paper's robust formulation (arXiv 2102.07265): tuples with perturbed elements."""

from typing import Literal

import torch
from torch import Tensor, nn

from dml.attacks.objectives.base import Objective
from dml.attacks.objectives.tuples import role_objective
from dml.common.checks import known
from dml.defenses.adversarial import Adversarial, Start
from dml.defenses.base import Perturbs
from dml.losses.base import BatchLoss, Loss, TupleLoss
from dml.losses.miners.base import Tuples
from dml.models.embedder import evaluating

QUERY = "query"
SLOT, IMAGE = SCOPES = ("slot", "image")


class Robust(Adversarial):
    """Trains on tuples with perturbed roles, or on perturbed queries.

    With a loss on tuples, these are mined on clean embeddings. PGD then perturbs the element in role ``target`` against
    the clean embeddings of the other two, which stay fixed. The perturbed image replaces that element in that tuple
    only: the same image is clean wherever else it occurs. With ``scope: image``, all tuples in which an image has the
    role share its perturbation, which raises the sum of their objectives.

    If ``target`` lists several roles, each of them is perturbed in this way by itself: clean embeddings of the others,
    random start and term as for that role alone. All perturbed elements then replace theirs in the tuple.

    With a loss on the batch, ``target`` is ``query``: PGD maximises the loss of every image as a query to the clean
    batch, whose embeddings stay fixed.

    The fixed embeddings are those of the training pass. PGD runs with BatchNorm in evaluation mode, as an attacker
    would.

    Args:
        eps: radius of the l-inf ball, of pixels in [0, 1].
        steps: PGD steps, from a uniform random start.
        target: what is perturbed: ``positive``, ``negative`` or ``anchor`` of each tuple, or a list of these; or
            ``query``.
        step_size: of a step, pixel units; ``2 * eps / steps`` if None.
        ramp: share of the training over which the radius, and the step with it, grows from 0.
        noise: see :class:`dml.defenses.adversarial.Adversarial`.
        scope: ``slot`` perturbs each role of each tuple by itself, ``image`` each image once per role.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        eps: float = 8 / 255,
        steps: int = 5,
        target: Literal["positive", "negative", "anchor", "query"]
        | list[Literal["positive", "negative", "anchor"]] = "positive",
        step_size: float | None = None,
        ramp: float = 0.0,
        noise: Start = None,
        scope: Literal["slot", "image"] = SLOT,
    ) -> None:
        super().__init__(eps, steps, step_size, ramp, noise)
        if isinstance(target, str):
            known("target", target, (*Tuples._fields, QUERY))
        else:
            _check_roles(target)
        known("scope", scope, SCOPES)
        if scope == IMAGE and target == QUERY:
            raise ValueError("scope is 'image'; with target 'query' each image has one perturbation, so leave it out")
        self.target = target
        self.scope = scope

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Loss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        """Return the losses with perturbed elements; see :meth:`dml.defenses.base.Defense.forward`."""
        self._check(loss)
        embeddings = model(images)
        fixed = embeddings.detach()
        if self.target == QUERY:
            own = torch.arange(len(labels), device=labels.device)
            with evaluating(model), evaluating(loss):
                perturbed = self.perturb(
                    images, lambda changed: loss(model(changed), labels, fixed, labels, own), generator, progress
                )
            return loss(model(perturbed), labels, embeddings, labels, own)
        tuples = loss.mine(fixed, labels, generator)
        perturbed = {}
        with evaluating(model):
            for role in [self.target] if isinstance(self.target, str) else self.target:
                rows, slots = getattr(tuples, role), slice(None)
                objective = role_objective(model, role, *tuples.pick(fixed))
                if self.scope == IMAGE:
                    rows, slots = rows.unique(return_inverse=True)
                    objective = _shared(model, role, tuples.pick(fixed), slots)
                perturbed[role] = self.perturb(images[rows], objective, generator, progress, role), slots
        roles = dict(zip(tuples._fields, tuples.pick(embeddings), strict=True))
        return loss(**roles | {role: model(changed)[slots] for role, (changed, slots) in perturbed.items()})

    def perturbs(self, tuples: bool) -> Perturbs:
        """See :meth:`dml.defenses.base.Defense.perturbs`."""
        if not tuples:
            return Perturbs((QUERY,), "query", None)
        roles = (self.target,) if isinstance(self.target, str) else tuple(self.target)
        return Perturbs(roles, "slot" if self.scope == SLOT else "role")

    def _check(self, loss: Loss) -> None:
        name = type(loss).__name__
        if self.target == QUERY and not isinstance(loss, BatchLoss):
            raise ValueError(
                f"target is 'query'; {name} costs tuples, so it must be 'positive', 'negative' or 'anchor'"
            )
        if self.target != QUERY and not isinstance(loss, TupleLoss):
            raise ValueError(f"target is {self.target!r}; {name} costs whole queries, so it must be 'query'")


def _shared(model: nn.Module, role: str, fixed: tuple[Tensor, ...], slots: Tensor) -> Objective:
    """Return the objective of images (U, 3, H, W) that fill a role in several tuples: each one's sum over its tuples.

    Args:
        model: images -> embeddings.
        role: of the images.
        fixed: embeddings (T, D) of the three roles.
        slots: (T,) number of the image in the role.
    """
    of_tuples = role_objective(lambda changed: model(changed)[slots], role, *fixed)

    def of_images(changed: Tensor) -> Tensor:
        values = of_tuples(changed)
        return values.new_zeros(len(changed)).index_add(0, slots, values)

    return of_images


def _check_roles(roles: list[str]) -> None:
    if not roles:
        raise ValueError("target is an empty list; it must name at least one role")
    for role in roles:
        known("role in target", role, Tuples._fields)
    if twice := sorted(role for role in set(roles) if roles.count(role) > 1):
        raise ValueError(f"target lists {twice[0]!r} more than once; it must list each role once")
