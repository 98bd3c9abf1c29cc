"""`poisoning`: the query is clean, and an attacker perturbs an item of the gallery so that it is found first."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dml.attacks import Linf, Objective, apgd
from dml.attacks.methods import FOOLED
from dml.attacks.objectives.queries import nearest_wrong_classes
from dml.common.checks import at_least
from dml.common.randomness import torch_generator
from dml.data.sampling import to_float
from dml.evaluation.engine import chunk_size_for, in_chunks, rows_of
from dml.evaluation.suites.base import Evaluation, check_common
from dml.models.embedder import device_of
from dml.retrieval.index import Gallery, Matches, Queries, Search, per_query


@dataclass(frozen=True)
class Poisoning:
    """One perturbed item a query: the nearest item of each of the nearest wrong classes in turn, by Auto-PGD.

    Attributes:
        queries, eps: see :class:`dml.evaluation.suites.base.Suite`; radii of the l-inf ball.
        items: tried for each query, or as many as there are wrong classes.
        steps: for each of them.
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
        """See :class:`dml.evaluation.suites.base.Suite`. MAP@R of a query that falls is that
        with the item replaced by its perturbed copy, of one that stands the natural one."""
        return Evaluation(
            in_chunks(
                rows,
                lambda chunk: self._chunk(search, chunk, seed),
                size=chunk_size_for(search),
                folder=folder,
                report=report,
            )
        )

    def _chunk(self, search: Search, chunk: np.ndarray, seed: int) -> pd.DataFrame:
        queries, gallery = search.queries(chunk), search.gallery
        embeddings = gallery.embeddings[queries.own]
        natural = per_query(embeddings, queries, gallery)
        tables = [rows_of(chunk, "none", Linf.norm, 0.0, natural)]
        count = min(self.items, len(gallery.labels.unique()) - 1)
        items = nearest_items(embeddings, nearest_wrong_classes(embeddings, queries, gallery, count), gallery)
        for eps in self.eps:
            outcome = natural._replace(
                r1=natural.r1.clone(), r_precision=natural.r_precision.clone(), map_r=natural.map_r.clone()
            )
            for rank in range(count):
                left = outcome.r1.nonzero().squeeze(1)
                if not len(left):
                    break
                some, chosen = queries.take(left), items[left, rank]
                pictures = to_float(search.split.images[chosen.cpu().numpy()], device_of(search.model))
                objective = item_objective(search.model, embeddings[left], some, gallery)
                generator = torch_generator(seed, "poisoning", int(chunk[0]), eps, rank)
                found = apgd(pictures, objective, Linf(eps), steps=self.steps, goal=FOOLED, generator=generator)
                with torch.no_grad():
                    moved = search.model(found)
                for place, row in enumerate(left):
                    after = per_query(
                        embeddings[row][None],
                        queries.take(row[None]),
                        Gallery(
                            gallery.embeddings.index_copy(0, chosen[place][None], moved[place][None]), gallery.labels
                        ),
                    )
                    if not bool(after.r1[0]):
                        for kept, value in zip(outcome, after, strict=True):
                            kept[row] = value[0]
            tables.append(rows_of(chunk, "worst", Linf.norm, eps, outcome))
        return pd.concat(tables, ignore_index=True)


def nearest_items(embeddings: Tensor, classes: Tensor, gallery: Gallery) -> Tensor:
    """Rows (B, K) of the item of each class (B, K) that is nearest to each query."""
    similarity = embeddings @ gallery.embeddings.T
    found = [
        similarity.masked_fill(classes[:, rank, None] != gallery.labels, -torch.inf).argmax(1)
        for rank in range(classes.shape[1])
    ]
    return torch.stack(found, dim=1)


def item_objective(model: nn.Module, embeddings: Tensor, queries: Queries, gallery: Gallery) -> Objective:
    """Similarity of a perturbed item to its clean query (B, D), less that of the query's nearest right item."""
    right = Matches.of(queries, gallery).right
    best = (embeddings @ gallery.embeddings.T).masked_fill(~right, -torch.inf).amax(1)
    return lambda images: (model(images) * embeddings).sum(1) - best
