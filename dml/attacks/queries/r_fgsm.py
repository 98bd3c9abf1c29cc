"""R-FGSM on a query's metric loss, as in arXiv 2102.07265."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.tuples import Positive, check_positive, metric_loss_objective
from dml.attacks.optimisers.fgsm import r_fgsm
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search


@dataclass(frozen=True)
class RandomFGSM(Attack):
    """Half of eps to a random corner of the ball, the other half along the gradient found there.

    Attributes:
        positive: of the loss, see :func:`dml.attacks.objectives.tuples.metric_loss_objective`.
    """

    positive: Positive = "nearest"

    def __post_init__(self) -> None:
        check_positive(self.positive)

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`."""

        def run(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
            objective = metric_loss_objective(search.model, images, queries, search.gallery, self.positive)
            return r_fgsm(images, objective, ball, generator=generator)

        return [run]
