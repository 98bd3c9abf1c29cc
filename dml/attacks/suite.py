"""Suites: which attacks are run on a query, and with what effort. What counts is the worst of them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dml.attacks.balls import Linf
from dml.attacks.objectives import margin_objective, nearest_wrong_classes, targeted_objective
from dml.attacks.pgd import falling_steps, pgd
from dml.checks import at_least
from dml.retrieval import Gallery, Queries

Attack = Callable[[Tensor, Queries, float, torch.Generator], Tensor]
"""Pictures (B, 3, H, W), their queries, eps, generator -> perturbed pictures."""


@dataclass(frozen=True)
class Suite:
    """The effort that an evaluation takes.

    Attributes:
        queries: how many queries of the test half are attacked, drawn once by the seed.
        eps: radii of the l-inf ball.
        margin_steps: steps of PGD on the 1-NN margin.
        targets: nearest wrong classes that are targeted in turn, or all where there are fewer.
        targeted_steps: steps of PGD towards each of them.
        restarts: random starts of every PGD.
    """

    queries: int
    eps: tuple[float, ...]
    margin_steps: int = 40
    targets: int = 5
    targeted_steps: int = 20
    restarts: int = 1

    def __post_init__(self) -> None:
        for name in ("queries", "margin_steps", "targeted_steps", "restarts"):
            at_least(name, getattr(self, name), 1)
        at_least("targets", self.targets, 0)
        for eps in self.eps:
            at_least("eps", eps, 0)

    def attacks(self, model: nn.Module, gallery: Gallery) -> list[tuple[str, list[Attack]]]:
        """Named groups of attacks, in the order in which they are run on the queries that still stand.

        A restart is an attack of its own, so that it is spent on those queries alone.
        """
        margin = [margin_pgd(model, gallery, steps=self.margin_steps)]
        targets = min(self.targets, len(gallery.labels.unique()) - 1)
        targeted = [targeted_pgd(model, gallery, rank=rank, steps=self.targeted_steps) for rank in range(targets)]
        return [("margin", margin * self.restarts), ("targeted", targeted * self.restarts)]


def margin_pgd(model: nn.Module, gallery: Gallery, *, steps: int) -> Attack:
    """PGD on the 1-NN margin: any wrong class will do."""

    def attack(images: Tensor, queries: Queries, eps: float, generator: torch.Generator) -> Tensor:
        objective = margin_objective(model, queries, gallery)
        return _pgd(images, objective, eps, steps, generator)

    return attack


def targeted_pgd(model: nn.Module, gallery: Gallery, *, rank: int, steps: int) -> Attack:
    """PGD towards the wrong class that is ``rank``-th nearest (from 0) to the unperturbed picture."""

    def attack(images: Tensor, queries: Queries, eps: float, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            target = nearest_wrong_classes(model(images), queries, gallery, rank + 1)[:, rank]
        objective = targeted_objective(model, queries, gallery, target)
        return _pgd(images, objective, eps, steps, generator)

    return attack


def _pgd(
    images: Tensor, objective: Callable[[Tensor], Tensor], eps: float, steps: int, generator: torch.Generator
) -> Tensor:
    """PGD from a random start whose steps fall from eps to 0, so that the step size needs no tuning."""
    sizes = falling_steps(eps, steps)
    return pgd(images, objective, Linf(eps), steps=steps, step_size=sizes, generator=generator)
