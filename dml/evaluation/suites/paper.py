"""`paper`: the four attacks of arXiv 2102.07265 with its steps, beside which stronger ones can be judged."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dml.attacks.balls import Linf
from dml.attacks.methods import Aims, by_carlini_wagner, by_equal_steps, by_fgsm, by_r_fgsm
from dml.common.checks import at_least
from dml.evaluation.engine import Group, attack
from dml.evaluation.suites.base import Evaluation, check_common
from dml.retrieval.index import Search


@dataclass(frozen=True)
class Paper:
    """PGD, FGSM, R-FGSM and C&W on the metric loss of a query's own tuple, each on all queries, and the worst of them.

    Whatever loss a model was trained with, it is the triplet's difference of distances without its hinge, and the
    positive is the nearest right item. (The paper took the query's own clean picture for it, which measures how far
    an embedding moves and not whether the search fails.)

    Attributes:
        queries, eps: see :class:`dml.evaluation.suites.base.Suite`; radii of the l-inf ball.
        steps: of PGD, each of 2 eps / steps.
        carlini_wagner_steps: for each weight of its bisection; 0 leaves it out.
    """

    queries: int
    eps: tuple[float, ...]
    steps: int = 5
    carlini_wagner_steps: int = 30

    def __post_init__(self) -> None:
        check_common(self.queries, self.eps)
        at_least("steps", self.steps, 1)
        at_least("carlini_wagner_steps", self.carlini_wagner_steps, 0)

    def groups(self, search: Search) -> list[Group]:
        """The attacks, each of which is run on all queries."""
        aim = Aims(search.model, search.gallery).metric_loss
        found: list[Group] = [
            ("fgsm", [by_fgsm(aim)]),
            ("r_fgsm", [by_r_fgsm(aim)]),
            ("pgd", [by_equal_steps(aim, steps=self.steps, size=2 / self.steps)]),
        ]
        if self.carlini_wagner_steps:
            found.append(("carlini_wagner", [by_carlini_wagner(aim, steps=self.carlini_wagner_steps)]))
        return found

    def evaluate(
        self,
        search: Search,
        rows: np.ndarray,
        *,
        seed: int,
        folder: Path | None = None,
        report: Callable[[str], None] = print,
    ) -> Evaluation:
        """See :class:`dml.evaluation.suites.base.Suite`."""
        balls = [Linf(eps) for eps in self.eps]
        outcomes = attack(search, rows, self.groups(search), balls, seed=seed, alone=True, folder=folder, report=report)
        return Evaluation(outcomes)
