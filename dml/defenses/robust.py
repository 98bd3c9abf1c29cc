"""The paper's robust formulation (arXiv 2102.07265): one perturbed element in every tuple."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dml.attacks import Linf, Objective, pgd
from dml.common.checks import at_least, linf_radius
from dml.losses import TupleLoss, distance
from dml.models.embedder import Embedder, evaluating


def role_objective(model: Embedder, target: str, anchor: Tensor, positive: Tensor, negative: Tensor) -> Objective:
    """What a perturbation of one role maximises against the fixed embeddings (T, D) of the others.

    positive: d(p~, a); negative: -d(n~, a); anchor: d(a~, p) - d(a~, n). The terms are taken without the hinge
    of the loss, whose gradient vanishes where a tuple already costs nothing.
    """
    objectives: dict[str, Objective] = {
        "positive": lambda images: distance(model(images), anchor),
        "negative": lambda images: -distance(model(images), anchor),
        "anchor": lambda images: _difference(model(images), positive, negative),
    }
    return objectives[target]


def _difference(embeddings: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    return distance(embeddings, positive) - distance(embeddings, negative)


@dataclass(frozen=True)
class Robust:
    """Tuples are mined on clean embeddings; the element in role ``target`` is then replaced by the worst picture
    near it, found by PGD against the clean embeddings of the other two, which stay fixed. The perturbed picture
    stands in that tuple only: the same image is clean wherever else it occurs. The fixed embeddings are those of
    the training pass; the perturbed picture is sought with BatchNorm in evaluation mode, as an attacker would.

    Attributes:
        eps: radius of the l-inf ball, of pixels in [0, 1].
        steps: PGD steps, from a uniform random start.
        target: the role that is perturbed.
        step_size: of a step, pixel units; ``2 * eps / steps`` if None.
        ramp: share of the training over which the radius, and the step with it, grows from 0.
    """

    eps: float = 8 / 255
    steps: int = 5
    target: Literal["positive", "negative", "anchor"] = "positive"
    step_size: float | None = None
    ramp: float = 0.0

    def __post_init__(self) -> None:
        linf_radius("eps", self.eps)
        at_least("steps", self.steps, 1)
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"step_size is {self.step_size}; it should be above 0")
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp is {self.ramp}; it should lie between 0 and 1")

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
        grown = min(1.0, progress / self.ramp) if self.ramp else 1.0
        with evaluating(model):
            perturbed = pgd(
                images[getattr(tuples, self.target)],
                role_objective(model, self.target, *tuples.pick(embeddings.detach())),
                Linf(grown * self.eps),
                steps=self.steps,
                step_size=grown * (2 * self.eps / self.steps if self.step_size is None else self.step_size),
                best=False,
                generator=generator,
            )
        roles = dict(zip(tuples._fields, tuples.pick(embeddings), strict=True))
        roles[self.target] = model(perturbed)
        return tuple_loss.cost(**roles)
