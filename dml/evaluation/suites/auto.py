"""`auto`: the suite that claims rest on, in the manner of AutoAttack (Croce and Hein 2020) but on retrieval."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dml.attacks.balls import Linf
from dml.attacks.methods import FOOLED, Aims, by_apgd, by_square
from dml.attacks.objectives.queries import FOOLS
from dml.common.checks import at_least
from dml.evaluation.engine import Group, attack
from dml.evaluation.suites.base import Evaluation, check_common
from dml.retrieval.index import Search

FIRST_STEPS = 10  # of the attack that goes before all others, and leaves them the queries that are hard


@dataclass(frozen=True)
class Auto:
    """Auto-PGD on the 1-NN margin, towards each of the nearest wrong classes, and on the cross-entropy of the 1-NN
    logits, then Square; the worst counts for each query. With the defaults nothing is left to choose; smaller numbers
    make a cheaper suite of the same kind, and 0 leaves an attack out.

    Attributes:
        queries, eps: see :class:`dml.evaluation.suites.base.Suite`; radii of the l-inf ball.
        margin_steps: on the margin.
        targets: nearest wrong classes, or all where there are fewer.
        targeted_steps: towards each of them.
        cross_entropy_steps: on the cross-entropy.
        square_tries: of Square.
        restarts: random starts of every attack by gradients.
        compared: of the queries, on which weak and strong attacks are compared one by one.
        gate_tries: of Square where it is a gate, see :mod:`dml.evaluation.gates`.
    """

    queries: int
    eps: tuple[float, ...]
    margin_steps: int = 400
    targets: int = 9
    targeted_steps: int = 100
    cross_entropy_steps: int = 100
    square_tries: int = 1000
    restarts: int = 1
    compared: int = 100
    gate_tries: int = 500

    def __post_init__(self) -> None:
        check_common(self.queries, self.eps)
        for name in ("margin_steps", "targeted_steps", "restarts", "compared", "gate_tries"):
            at_least(name, getattr(self, name), 1)
        for name in ("targets", "cross_entropy_steps", "square_tries"):
            at_least(name, getattr(self, name), 0)

    def groups(self, search: Search) -> list[Group]:
        """The attacks in order. A restart or a target is an attack of its own: it is spent on what still stands."""
        aims = Aims(search.model, search.gallery)
        margin = [by_apgd(aims.margin, steps=min(FIRST_STEPS, self.margin_steps), goal=FOOLED)]
        margin += [by_apgd(aims.margin, steps=self.margin_steps, goal=FOOLED)] * self.restarts
        targets = range(min(self.targets, len(search.gallery.labels.unique()) - 1))
        targeted = [by_apgd(aims.targeted(rank), steps=self.targeted_steps, goal=FOOLED) for rank in targets]
        found: list[Group] = [("margin", margin)]
        if targeted:
            found.append(("targeted", targeted * self.restarts))
        if self.cross_entropy_steps:
            found.append(
                (
                    "cross_entropy",
                    [by_apgd(aims.cross_entropy, steps=self.cross_entropy_steps, goal=FOOLS)] * self.restarts,
                )
            )
        if self.square_tries:
            found.append(("square", [by_square(aims.margin, tries=self.square_tries)]))
        return found

    def doubled(self) -> "Auto":
        """The same attacks by gradients with twice the steps, without Square."""
        steps = ("margin_steps", "targeted_steps", "cross_entropy_steps")
        return replace(self, square_tries=0, **{name: 2 * getattr(self, name) for name in steps})

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
        return Evaluation(attack(search, rows, self.groups(search), balls, seed=seed, folder=folder, report=report))
