"""Auto-PGD on the 1-NN margin."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.base import FOOLED
from dml.attacks.objectives.margin import margin_objective
from dml.attacks.optimisers.apgd import apgd
from dml.common.checks import at_least
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search


@dataclass(frozen=True)
class Margin(Attack):
    """Auto-PGD on the 1-NN margin, first a short run that leaves the hard queries to the long ones.

    Attributes:
        steps: of each long run.
        restarts: long runs.
        first: steps of the short run, at most ``steps``; 0 leaves it out.
    """

    steps: int = 400
    restarts: int = 1
    first: int = 10

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        at_least("restarts", self.restarts, 1)
        at_least("first", self.first, 0)

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`."""
        short = [_run(search, min(self.first, self.steps))] if self.first else []
        return short + [_run(search, self.steps)] * self.restarts

    def doubled(self) -> "Margin":
        """See :class:`dml.attacks.base.Attack`; the short run stays short."""
        return replace(self, steps=2 * self.steps)


def _run(search: Search, steps: int) -> Run:
    def run(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
        objective = margin_objective(search.model, queries, search.gallery)
        return apgd(images, objective, ball, steps=steps, goal=FOOLED, generator=generator)

    return run
