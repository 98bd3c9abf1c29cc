"""FGSM on a query's metric loss (as in arXiv 2102.07265) or on its margin."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.margin import margin_objective
from dml.attacks.objectives.tuples import Positive, check_positive, metric_loss_objective
from dml.attacks.optimisers.fgsm import fgsm
from dml.common.checks import known
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length eps.

    Attributes:
        objective: ``metric_loss`` or ``margin``.
        positive: of the metric loss, see :func:`dml.attacks.objectives.tuples.metric_loss_objective`.
    """

    objective: Literal["metric_loss", "margin"] = "metric_loss"
    positive: Positive = "nearest"

    def __post_init__(self) -> None:
        known("objective", self.objective, ("metric_loss", "margin"))
        check_positive(self.positive)
        if (self.objective, self.positive) == ("margin", "itself"):
            raise ValueError("positive is 'itself'; the margin has no fixed positive, so leave it out")

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`."""
        model, gallery = search.model, search.gallery

        def run(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
            if self.objective == "margin":
                return fgsm(images, margin_objective(model, queries, gallery), ball)
            return fgsm(images, metric_loss_objective(model, images, queries, gallery, self.positive), ball)

        return [run]
