"""Auto-PGD on the difference of logits ratio (Croce and Hein 2020)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.base import FOOLED
from dml.attacks.objectives.logits import dlr_objective
from dml.attacks.optimisers.apgd import apgd
from dml.common.checks import at_least
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search


@dataclass(frozen=True)
class DLR(Attack):
    """Auto-PGD on a margin that does not change when all similarities are scaled; the gallery needs three classes.

    Attributes:
        steps: of the run.
    """

    steps: int = 50

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`; none where the gallery holds two classes."""
        if len(search.gallery.labels.unique()) < 3:
            return []

        def run(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
            objective = dlr_objective(search.model, queries, search.gallery)
            return apgd(images, objective, ball, steps=self.steps, goal=FOOLED, generator=generator)

        return [run]

    def doubled(self) -> "DLR":
        """See :class:`dml.attacks.base.Attack`."""
        return replace(self, steps=2 * self.steps)
