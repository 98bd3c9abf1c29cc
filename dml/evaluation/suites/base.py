"""What all suites share: their settings, and what they find."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from dml.attacks.base import Attack
from dml.common.checks import at_least, linf_radius
from dml.evaluation.engine import Group
from dml.retrieval.index import Search


@dataclass(frozen=True)
class Evaluation:
    """What a suite found.

    Attributes:
        outcomes: one row per query, attack and radius, see :func:`dml.evaluation.engine.attack`.
        scores: further figures by name.
    """

    outcomes: pd.DataFrame
    scores: dict[str, float] = field(default_factory=dict)


class Suite(ABC):
    """How hard, and with what, a model is evaluated. Subclasses are frozen dataclasses.

    Attributes:
        queries: how many queries to use: the first of the seed's order, the same for every model and suite.
        eps: radii.
        claims: whether claims rest on it; then :mod:`dml.evaluation.gates` checks it.
        alone: whether each attack meets all queries, and the outcomes hold rows for each.
        gate_tries: evaluations per query of the black-box gate.
        counts_groups: whether items of a query's own group may answer it.
    """

    counts_groups: ClassVar[bool] = False

    queries: int
    eps: tuple[float, ...]
    claims: bool = False
    alone: bool = False
    gate_tries: int = 500

    @abstractmethod
    def evaluate(
        self,
        search: Search,
        rows: np.ndarray,
        *,
        seed: int,
        folder: Path | None = None,
        report: Callable[[str], None] = print,
    ) -> Evaluation:
        """Evaluate the queries of some rows.

        Args:
            search: the model and its gallery.
            rows: numbers of the queries, see :func:`dml.data.sampling.attacked_rows`.
            seed: of all random draws.
            folder: keeps what is finished, so that a killed evaluation continues; None keeps nothing.
            report: receives one line per chunk of queries.
        """

    @property
    def named(self) -> Mapping[str, Attack]:
        """The attacks by name, in order; a suite that has some is a list of attacks with settings ``attacks``."""
        return {}

    def runs(self, search: Search) -> list[Group]:
        """Return the runs of :attr:`named` on one model and gallery."""
        return []

    def doubled(self) -> "Suite | None":
        """Return the suite with twice the steps in every attack that has steps; None if no attack has."""
        return None


def check_common(queries: int, eps: tuple[float, ...], check: Callable[[str, float], None] = linf_radius) -> None:
    """Raise ValueError if there is no query or radius, or a radius does not pass its check."""
    at_least("queries", queries, 1)
    if not eps:
        raise ValueError("eps is empty; it must list at least one radius")
    for radius in eps:
        check("eps", radius)
