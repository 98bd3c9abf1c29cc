"""Random noise: no search at all."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.margin import margin_objective
from dml.attacks.optimisers.pgd import better, value_of
from dml.common.checks import at_least
from dml.common.randomness import normal
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search


@dataclass(frozen=True)
class Noise(Attack):
    """The worst of a few random points of the ball and as many of its corners, by the 1-NN margin.

    Attributes:
        draws: points, and corners, per query.
    """

    draws: int = 10

    def __post_init__(self) -> None:
        at_least("draws", self.draws, 1)

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`."""

        def run(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
            objective = margin_objective(search.model, queries, search.gallery)
            worst, value = images, value_of(objective, images)
            for _ in range(self.draws):
                inner = ball.start(images, generator)
                direction = normal(images.shape, images, generator)
                corner = ball.project(ball.step(images, direction, ball.eps), images)
                for trial in (inner, corner):
                    worst, value = better(worst, value, trial, value_of(objective, trial))
            return worst

        return [run]
