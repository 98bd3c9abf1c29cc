"""PGD on a query's metric loss with equal steps, as in arXiv 2102.07265."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.tuples import Positive, check_positive, metric_loss_objective
from dml.attacks.optimisers.pgd import pgd
from dml.common.checks import at_least
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search


@dataclass(frozen=True)
class PGD(Attack):
    """PGD from a random start, each step of 2 eps / steps.

    Attributes:
        steps: of the run.
        positive: of the loss, see :func:`dml.attacks.objectives.tuples.metric_loss_objective`.
    """

    steps: int = 5
    positive: Positive = "nearest"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        check_positive(self.positive)

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`."""

        def run(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
            objective = metric_loss_objective(search.model, images, queries, search.gallery, self.positive)
            size = 2 / self.steps * ball.eps
            return pgd(images, objective, ball, steps=self.steps, step_size=size, generator=generator)

        return [run]

    def doubled(self) -> "PGD":
        """See :class:`dml.attacks.base.Attack`."""
        return replace(self, steps=2 * self.steps)
