"""`with_groups`: attacks where near duplicates count; they show how much of R@1 is finding the twin."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dml.evaluation.engine import Group
from dml.evaluation.suites.attacks import AttackSuite
from dml.evaluation.suites.base import Evaluation
from dml.retrieval.gallery import Gallery
from dml.retrieval.index import Search


@dataclass(frozen=True)
class WithGroupsSuite(AttackSuite):
    """:class:`AttackSuite`, but a query may be answered by items of its own group; only the query itself is left out.

    No claim can rest on it: gates and natural scores of a model leave groups out.

    Raises:
        ValueError: see :class:`AttackSuite`; or ``claims`` is true.
    """

    counts_groups = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.claims:
            raise ValueError("claims is true; it must be false, since gates leave the items of a query's group out")

    def runs(self, search: Search) -> list[Group]:
        """See :class:`dml.evaluation.suites.base.Suite`."""
        return super().runs(with_groups(search))

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
        return super().evaluate(with_groups(search), rows, seed=seed, folder=folder, report=report)


def with_groups(search: Search) -> Search:
    """Return the same search with each item in a separate group."""
    gallery = Gallery(search.gallery.embeddings, search.gallery.labels)
    queries = replace(search.query_split, groups=None) if search.apart else search.query_split
    return replace(search, gallery=gallery, query_split=queries)
