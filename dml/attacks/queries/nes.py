"""NES on the ranking: a black-box attack that sees ranks and no similarity."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.ranks import rank_objective
from dml.attacks.optimisers.nes import nes
from dml.common.checks import at_least
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search


@dataclass(frozen=True)
class NES(Attack):
    """Natural evolution strategies on the mean log2 rank of the right items, with steps of eps / 4.

    Attributes:
        steps: each ranks the gallery 41 times.
    """

    steps: int = 5

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`."""

        def run(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
            objective = rank_objective(search.model, queries, search.gallery)
            return nes(images, objective, ball, steps=self.steps, step_size=ball.eps / 4, generator=generator)

        return [run]
