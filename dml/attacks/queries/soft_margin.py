"""PGD with momentum on the softened 1-NN margin, then towards each of the nearest wrong classes."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dml.attacks.balls import Ball
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.base import FOOLS, Objective
from dml.attacks.objectives.margin import nearest_wrong_classes
from dml.attacks.objectives.soft_margin import soft_margin_objective
from dml.attacks.optimisers.momentum import Goal, momentum_pgd
from dml.attacks.optimisers.pgd import value_of
from dml.common.checks import at_least
from dml.models.autocast import Autocast
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search

BEYOND = 0.25  # times the way to a margin of 0, that a query goes past it before it is clearly broken


@dataclass(frozen=True)
class SoftMargin(Attack):
    """With few steps it breaks more queries than Auto-PGD on the margin does: benchmarks/strength.py compares them.

    A query that is clearly broken takes no further steps.

    Attributes:
        steps: away from the right items.
        classes: targets in turn, or all wrong classes if there are fewer; 0 for none.
        target_steps: towards each of them.
        restarts: of the run away from the right items.
    """

    steps: int = 100
    classes: int = 12
    target_steps: int = 10
    restarts: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "target_steps", "restarts"):
            at_least(name, getattr(self, name), 1)
        at_least("classes", self.classes, 0)

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`."""
        targets = min(self.classes, len(search.gallery.labels.unique()) - 1)
        away = [_run(search, self.steps, None)] * self.restarts
        return away + [_run(search, self.target_steps, rank) for rank in range(targets)]

    def doubled(self) -> "SoftMargin":
        """See :class:`dml.attacks.base.Attack`."""
        return replace(self, steps=2 * self.steps, target_steps=2 * self.target_steps)


def _run(search: Search, steps: int, rank: int | None) -> Run:
    model, gallery = search.model, search.gallery

    def run(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
        target = None
        if rank is not None:
            with torch.no_grad():
                target = nearest_wrong_classes(model(images), queries, gallery, rank + 1)[:, rank]

        def narrow(rows: Tensor) -> Objective:
            aimed = None if target is None else target[rows]
            return soft_margin_objective(model, queries.take(rows), gallery, aimed)

        objective = soft_margin_objective(model, queries, gallery, target)
        goal = Goal(_enough(value_of(objective, images), model), narrow)
        return momentum_pgd(images, objective, ball, steps=steps, goal=goal, generator=generator)

    return run


def _enough(start: Tensor, model: nn.Module) -> Tensor:
    """The value (B,) at which a query is clearly broken, from the values of the natural images.

    A query that coarse layers call broken from the start may take every step: what they say of it decides nothing.
    """
    error = model.error if isinstance(model, Autocast) else 0.0
    return (FOOLS + (BEYOND * start.abs()).clamp_min(error)).masked_fill(start >= 0, torch.inf)
