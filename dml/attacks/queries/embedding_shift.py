"""PGD on the shift of a query's own embedding."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.tuples import embedding_shift_objective
from dml.attacks.optimisers.pgd import falling_steps, pgd
from dml.common.checks import at_least
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search


@dataclass(frozen=True)
class EmbeddingShift(Attack):
    """PGD from a random start, with steps that fall from eps towards 0. Weak: it looks at no gallery item.

    Attributes:
        steps: of the run.
    """

    steps: int = 50

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`."""

        def run(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
            objective = embedding_shift_objective(search.model, images)
            sizes = falling_steps(ball.eps, self.steps)
            return pgd(images, objective, ball, steps=self.steps, step_size=sizes, generator=generator)

        return [run]

    def doubled(self) -> "EmbeddingShift":
        """See :class:`dml.attacks.base.Attack`."""
        return replace(self, steps=2 * self.steps)
