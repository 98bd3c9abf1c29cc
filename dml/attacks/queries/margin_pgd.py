"""PGD on the 1-NN margin."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.margin import margin_objective
from dml.attacks.optimisers.pgd import falling_steps, pgd
from dml.common.checks import at_least
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search


@dataclass(frozen=True)
class MarginPGD(Attack):
    """PGD from a random start.

    Attributes:
        steps: of the run.
        size: of equal steps, in units of eps. None: steps fall from eps towards 0.
    """

    steps: int = 50
    size: float | None = None

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        if self.size is not None and not self.size > 0:
            raise ValueError(f"size is {self.size}; it must be above 0")

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`."""

        def run(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
            objective = margin_objective(search.model, queries, search.gallery)
            sizes = falling_steps(ball.eps, self.steps) if self.size is None else self.size * ball.eps
            return pgd(images, objective, ball, steps=self.steps, step_size=sizes, generator=generator)

        return [run]

    def doubled(self) -> "MarginPGD":
        """See :class:`dml.attacks.base.Attack`."""
        return replace(self, steps=2 * self.steps)
