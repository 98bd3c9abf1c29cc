"""`ranking`: the field's ten scores and the ERS made of them (Zhou and Patel 2022)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dml.attacks import Linf, Objective, pgd
from dml.attacks.objectives import ranking as aims
from dml.attacks.objectives.queries import embedding_shift_objective
from dml.common.checks import at_least
from dml.common.randomness import torch_generator
from dml.data.sampling import to_float
from dml.evaluation.engine import chunk_size_for, in_chunks, rows_of
from dml.evaluation.suites.base import Evaluation, check_common
from dml.losses import distance
from dml.models.embedder import device_of
from dml.retrieval.index import Queries, Search, per_query, ranking

NEAR = 0.01  # CA- and QA- begin from a candidate among this share of the gallery, the nearest


@dataclass(frozen=True)
class Ranking:
    """CA+, CA-, QA+, QA-, TMA, ES:D, ES:R, LTM, GTM, GTT, by PGD of 32 steps of 3/8 eps, and their ERS.

    Attributes:
        queries, eps: see :class:`dml.evaluation.suites.base.Suite`; one radius of the l-inf ball, 8/255 as published.
        steps: of PGD.
    """

    queries: int
    eps: tuple[float, ...] = (8 / 255,)
    steps: int = 32

    def __post_init__(self) -> None:
        check_common(self.queries, self.eps)
        if len(self.eps) != 1:
            raise ValueError(f"eps lists {len(self.eps)} radii; the ranking scores are for one")
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
        """See :class:`dml.evaluation.suites.base.Suite`. ``outcomes``: what embedding shift, LTM and GTM leave."""
        if len(search.split) < 7:
            raise ValueError(f"the ranking scores need a gallery of 7 items or more; there are {len(search.split)}")
        table = in_chunks(
            rows,
            lambda chunk: self._chunk(search, chunk, seed),
            size=chunk_size_for(search),
            folder=folder,
            report=report,
        )
        outcomes, values = table[table["score"] == ""], table[table["score"] != ""]
        scores = {name: float(group["value"].mean()) for name, group in values.groupby("score", sort=False)}
        return Evaluation(
            outcomes.drop(columns=["score", "value"]).reset_index(drop=True), {**scores, "ERS": aims.ers(scores)}
        )

    def _chunk(self, search: Search, chunk: np.ndarray, seed: int) -> pd.DataFrame:
        model, gallery = search.model, search.gallery
        images, queries = to_float(search.split.images[chunk], device_of(model)), search.queries(chunk)
        eps = self.eps[0]
        draw = torch_generator(seed, "ranking partners", int(chunk[0]))

        def perturb(objective: Objective, name: str) -> Tensor:
            """Embeddings after the last step."""
            found = pgd(
                images,
                objective,
                Linf(eps),
                steps=self.steps,
                step_size=3 / 8 * eps,
                best=False,
                generator=torch_generator(seed, "ranking", name, int(chunk[0])),
            )
            with torch.no_grad():
                return model(found)

        own, natural = queries.own, gallery.embeddings[queries.own]
        nearest = ranking(natural, queries, gallery, max(1, round(NEAR * len(gallery.labels))))
        anyone = _another(own, len(gallery.labels), draw)
        near = nearest.gather(1, torch.randint(nearest.shape[1], (len(own), 1), generator=draw).to(own.device)).squeeze(
            1
        )
        scores: dict[str, Tensor] = {}
        for sign, partner in (("+", anyone), ("-", near)):
            raise_rank, counted = sign == "+", aims.others(own, partner, gallery)
            fixed = gallery.embeddings[partner]
            moved = perturb(aims.candidate_objective(model, gallery, own, partner, raise_rank=raise_rank), f"CA{sign}")
            scores[f"CA{sign}"] = aims.rank_percentile(distance(moved, fixed), aims.distances(fixed, gallery), counted)
            moved = perturb(aims.query_objective(model, gallery, own, partner, raise_rank=raise_rank), f"QA{sign}")
            scores[f"QA{sign}"] = aims.rank_percentile(distance(moved, fixed), aims.distances(moved, gallery), counted)
        target = gallery.embeddings[_another(own, len(gallery.labels), draw)]
        scores["TMA"] = (perturb(aims.target_objective(model, target), "TMA") * target).sum(1)
        shifted = perturb(embedding_shift_objective(model, images), "ES")
        scores["ES:D"] = distance(shifted, natural)
        wrong = gallery.embeddings[aims.nearest_wrong_item(natural, queries, gallery)]
        left = {
            "ES:R": shifted,
            "LTM": perturb(aims.misrank_objective(model, queries, gallery), "LTM"),
            "GTM": perturb(lambda pictures: -distance(model(pictures), wrong), "GTM"),
        }
        top = nearest[:, 0]
        moved = perturb(aims.translocation_objective(model, queries, gallery, top), "GTT")
        scores["GTT"] = 100.0 * (ranking(moved, queries, gallery, 4) == top[:, None]).any(1)

        rows = [_outcome(chunk, "none", 0.0, natural, queries, search)]
        for name, embeddings in left.items():
            rows.append(_outcome(chunk, name.split(":")[0].lower(), eps, embeddings, queries, search))
            scores[name] = torch.tensor(rows[-1]["r1"].to_numpy()) * 100.0
        table = pd.concat(rows).assign(score="", value=0.0)
        values = [
            table.iloc[: len(chunk)].assign(score=name, value=value.cpu().double().numpy(), attack="score", eps=eps)
            for name, value in scores.items()
        ]
        return pd.concat([table, *values], ignore_index=True)


def _outcome(
    chunk: np.ndarray, name: str, eps: float, embeddings: Tensor, queries: Queries, search: Search
) -> pd.DataFrame:
    return rows_of(chunk, name, Linf.norm, eps, per_query(embeddings, queries, search.gallery))


def _another(own: Tensor, total: int, draw: torch.Generator) -> Tensor:
    """For each row, another one, all equally likely."""
    return (own + torch.randint(1, total, (len(own),), generator=draw).to(own.device)) % total
