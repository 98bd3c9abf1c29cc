"""Auto-PGD on MAP@R."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.ranks import map_objective
from dml.attacks.optimisers.apgd import apgd
from dml.common.checks import at_least
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search


@dataclass(frozen=True)
class MAP(Attack):
    """Auto-PGD on the average precision at R of a query, rather than on its nearest neighbour.

    Attributes:
        steps: of the run.
    """

    lowers: ClassVar[Literal["r1", "map_r"]] = "map_r"
    steps: int = 50

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`."""

        def run(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
            objective = map_objective(search.model, queries, search.gallery)
            return apgd(images, objective, ball, steps=self.steps, generator=generator)

        return [run]

    def doubled(self) -> "MAP":
        """See :class:`dml.attacks.base.Attack`."""
        return replace(self, steps=2 * self.steps)
