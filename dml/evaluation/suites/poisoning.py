"""`poisoning`: the query is clean, and an attacker perturbs an item of the gallery so that it is found first."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dml.attacks.balls import Linf
from dml.attacks.objectives.base import FOOLED, Objective
from dml.attacks.objectives.margin import nearest_wrong_classes
from dml.attacks.optimisers.apgd import apgd
from dml.common.checks import at_least
from dml.common.randomness import torch_generator
from dml.data.transforms import to_float
from dml.evaluation.engine import chunk_size_for, in_chunks
from dml.evaluation.outcomes import rows_of
from dml.evaluation.suites.base import Evaluation, Suite, check_common
from dml.models.embedder import device_of
from dml.retrieval.gallery import Gallery, Matches, Queries
from dml.retrieval.index import Search
from dml.retrieval.metrics import Outcome, per_query


@dataclass(frozen=True)
class Poisoning(Suite):
    """One perturbed item per query: the nearest item of each of the nearest wrong classes in turn, by Auto-PGD.

    Attributes:
        queries, eps: see :class:`dml.evaluation.suites.base.Suite`; radii of the l-inf ball.
        items: tried for each query, or as many as there are wrong classes.
        steps: for each item.
    """

    queries: int
    eps: tuple[float, ...]
    items: int = 5
    steps: int = 50

    def __post_init__(self) -> None:
        check_common(self.queries, self.eps)
        at_least("items", self.items, 1)
        at_least("steps", self.steps, 1)

    def evaluate(
        self,
        search: Search,
        rows: np.ndarray,
        *,
        seed: int,
        folder: Path | None = None,
        report: Callable[[str], None] = print,
    ) -> Evaluation:
        """See :class:`dml.evaluation.suites.base.Suite`.

        MAP@R of a query that breaks is that with the perturbed item in place of the natural one; MAP@R of a query that
        survives is the natural one. What breaks at one radius breaks at each larger one.
        """

        def work(chunk: np.ndarray) -> pd.DataFrame:
            return self._chunk(search, chunk, seed)

        return Evaluation(in_chunks(rows, work, size=chunk_size_for(search), folder=folder, report=report))

    def _chunk(self, search: Search, chunk: np.ndarray, seed: int) -> pd.DataFrame:
        queries, gallery = search.queries(chunk), search.gallery
        embeddings = search.query_embeddings[torch.from_numpy(chunk).to(gallery.labels.device)]
        natural = per_query(embeddings, queries, gallery)
        before = rows_of(chunk, "none", Linf.norm, 0.0, natural)
        count = min(self.items, len(gallery.labels.unique()) - 1)
        items = nearest_items(embeddings, nearest_wrong_classes(embeddings, queries, gallery, count), queries, gallery)
        usable = Matches.of(queries, gallery).wrong.gather(1, items)  # a query may have fewer wrong classes
        outcome, found = Outcome(*(values.clone() for values in natural)), {}
        for eps in sorted(self.eps):
            for rank in range(count):
                left = (outcome.r1 & usable[:, rank]).nonzero().squeeze(1)
                if not len(left):
                    continue
                some, chosen = queries.take(left), items[left, rank]
                images = to_float(search.split.images[chosen.cpu().numpy()], device_of(search.model))
                objective = item_objective(search.model, embeddings[left], some, gallery)
                generator = torch_generator(seed, "poisoning", int(chunk[0]), eps, rank)
                perturbed = apgd(images, objective, Linf(eps), steps=self.steps, goal=FOOLED, generator=generator)
                with torch.no_grad():
                    moved = search.model(perturbed)
                for place, row in enumerate(left):
                    after = per_query(
                        embeddings[row][None], queries.take(row[None]), _replaced(gallery, chosen[place], moved[place])
                    )
                    if not bool(after.r1[0]):
                        for kept, value in zip(outcome, after, strict=True):
                            kept[row] = value[0]
            found[eps] = rows_of(chunk, "worst", Linf.norm, eps, outcome)
        return pd.concat([before, *(found[eps] for eps in self.eps)], ignore_index=True)


def _replaced(gallery: Gallery, row: Tensor, embedding: Tensor) -> Gallery:
    """The gallery with another embedding (D,) in one row."""
    return Gallery(gallery.embeddings.index_copy(0, row[None], embedding[None]), gallery.labels, gallery.groups)


def nearest_items(embeddings: Tensor, classes: Tensor, queries: Queries, gallery: Gallery) -> Tensor:
    """Return the rows (B, K) of the item of each class that is nearest to each query, ignored items left out.

    Args:
        embeddings: (B, D) of the queries.
        classes: (B, K) wrong classes of each query.
        queries, gallery: what is searched for, and where.
    """
    similarity = (embeddings @ gallery.embeddings.T).masked_fill(Matches.of(queries, gallery).ignored, -torch.inf)
    found = [
        similarity.masked_fill(classes[:, rank, None] != gallery.labels, -torch.inf).argmax(1)
        for rank in range(classes.shape[1])
    ]
    return torch.stack(found, dim=1)


def item_objective(model: nn.Module, embeddings: Tensor, queries: Queries, gallery: Gallery) -> Objective:
    """Return the similarity of a perturbed item to its clean query, less that of the query's nearest right item.

    Args:
        model: images of items (B, 3, H, W) -> unit embeddings.
        embeddings: (B, D) of the clean queries.
        queries, gallery: what is searched for, and where.
    """
    right = Matches.of(queries, gallery).right
    best = (embeddings @ gallery.embeddings.T).masked_fill(~right, -torch.inf).amax(1)
    return lambda images: (model(images) * embeddings).sum(1) - best
