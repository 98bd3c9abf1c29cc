"""Carlini and Wagner's attack on a query's metric loss, as in arXiv 2102.07265."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.tuples import Positive, check_positive, metric_loss_objective
from dml.attacks.optimisers.carlini_wagner import carlini_wagner
from dml.common.checks import at_least
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search


@dataclass(frozen=True)
class CarliniWagner(Attack):
    """The smallest perturbation in l2 that fools, then projected onto the ball.

    Attributes:
        steps: for each weight of the bisection.
        positive: of the loss, see :func:`dml.attacks.objectives.tuples.metric_loss_objective`.
    """

    steps: int = 30
    positive: Positive = "nearest"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        check_positive(self.positive)

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`."""

        def run(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
            objective = metric_loss_objective(search.model, images, queries, search.gallery, self.positive)
            return ball.project(carlini_wagner(images, objective, steps=self.steps), images)

        return [run]

    def doubled(self) -> "CarliniWagner":
        """See :class:`dml.attacks.base.Attack`."""
        return replace(self, steps=2 * self.steps)
