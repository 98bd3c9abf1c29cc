"""Square Attack on the 1-NN margin: a black-box attack that sees the margin and no gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dml.attacks.balls import Linf
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.base import FOOLED
from dml.attacks.objectives.margin import margin_objective
from dml.attacks.optimisers.square import square
from dml.common.checks import at_least
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search


@dataclass(frozen=True)
class Square(Attack):
    """Square Attack; the ball is l-inf. It has no doubled form: it checks the attacks that use gradients.

    Attributes:
        tries: evaluations of the margin per query.
    """

    tries: int = 1000

    def __post_init__(self) -> None:
        at_least("tries", self.tries, 1)

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`."""

        def run(images: Tensor, queries: Queries, ball: Linf, generator: torch.Generator) -> Tensor:
            objective = margin_objective(search.model, queries, search.gallery)
            return square(images, objective, ball, tries=self.tries, goal=FOOLED, generator=generator)

        return [run]
