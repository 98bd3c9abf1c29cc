"""Auto-PGD towards each of the nearest wrong classes in turn."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.base import FOOLED
from dml.attacks.objectives.margin import nearest_wrong_classes, targeted_objective
from dml.attacks.optimisers.apgd import apgd
from dml.common.checks import at_least
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search


@dataclass(frozen=True)
class Targeted(Attack):
    """Auto-PGD on the margin of one wrong class at a time, those nearest to the natural image first.

    Attributes:
        steps: towards each class.
        classes: targets in turn, or all wrong classes if there are fewer.
        restarts: rounds over all targets.
    """

    steps: int = 100
    classes: int = 9
    restarts: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "classes", "restarts"):
            at_least(name, getattr(self, name), 1)

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`."""
        wrong = len(search.gallery.labels.unique()) - 1
        return [_run(search, self.steps, rank) for rank in range(min(self.classes, wrong))] * self.restarts

    def doubled(self) -> "Targeted":
        """See :class:`dml.attacks.base.Attack`."""
        return replace(self, steps=2 * self.steps)


def _run(search: Search, steps: int, rank: int) -> Run:
    model, gallery = search.model, search.gallery

    def run(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            target = nearest_wrong_classes(model(images), queries, gallery, rank + 1)[:, rank]
        objective = targeted_objective(model, queries, gallery, target)
        return apgd(images, objective, ball, steps=steps, goal=FOOLED, generator=generator)

    return run
