"""What all suites share: what they are told and what they give back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from dml.common.checks import at_least, linf_radius
from dml.retrieval.index import Search


@dataclass(frozen=True)
class Evaluation:
    """What a suite found.

    Attributes:
        outcomes: a row a query, attack and radius, see :func:`dml.evaluation.engine.attack`.
        scores: further figures by name.
    """

    outcomes: pd.DataFrame
    scores: dict[str, float] = field(default_factory=dict)


class Suite(Protocol):
    """How hard, and with what, a model is evaluated.

    Attributes:
        queries: how many queries of the test half are used, drawn once by the seed, the same for every model.
        eps: radii.
    """

    queries: int
    eps: tuple[float, ...]

    def evaluate(
        self,
        search: Search,
        rows: np.ndarray,
        *,
        seed: int,
        folder: Path | None = None,
        report: Callable[[str], None] = print,
    ) -> Evaluation:
        """Evaluate the queries of some rows; ``folder`` keeps what is finished, so that a killed run goes on."""
        ...


def check_common(queries: int, eps: tuple[float, ...], check: Callable[[str, float], None] = linf_radius) -> None:
    """Raises ValueError if there is no query or radius, or a radius does not pass its check."""
    at_least("queries", queries, 1)
    if not eps:
        raise ValueError("eps is empty; it should list one radius or more")
    for radius in eps:
        check("eps", radius)
