"""Auto-PGD on the cross-entropy of the 1-NN logits."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.base import FOOLS
from dml.attacks.objectives.logits import cross_entropy_objective
from dml.attacks.optimisers.apgd import apgd
from dml.common.checks import at_least
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search


@dataclass(frozen=True)
class CrossEntropy(Attack):
    """Auto-PGD away from the own class, towards every other class at once.

    Attributes:
        steps: of each run.
        restarts: runs.
    """

    steps: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        at_least("restarts", self.restarts, 1)

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`."""

        def run(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
            objective = cross_entropy_objective(search.model, queries, search.gallery)
            return apgd(images, objective, ball, steps=self.steps, goal=FOOLS, generator=generator)

        return [run] * self.restarts

    def doubled(self) -> "CrossEntropy":
        """See :class:`dml.attacks.base.Attack`."""
        return replace(self, steps=2 * self.steps)
