"""`ranking`: the field's ten scores and the ERS made of them (Zhou and Patel 2022).

Objectives, steps, starts and scales are those of the authors' public code; QA+ and QA- are the pure attacks, without a
term that keeps other items in their places. What differs:

- The query never counts as an item of its own ranking; there LTM takes it for a right item.
- GTM goes towards the nearest item of another class than the query's. There it is an index into the items of another
  class than the nearest item's, used on the whole gallery.
- CA+ and CA- draw a candidate for each attacked query. There the attacked image is the candidate, and CA- draws a query
  near it.
- ES:D is measured after the last step; there, before it.
- The embedding shift starts at a random point of the ball. There it starts at the image, off by 1e-7.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dml.attacks.balls import Linf
from dml.attacks.objectives import ranking as aims
from dml.attacks.objectives.base import Objective
from dml.attacks.objectives.tuples import embedding_shift_objective
from dml.attacks.optimisers.pgd import pgd
from dml.common.checks import at_least
from dml.common.randomness import torch_generator
from dml.data.transforms import to_float
from dml.evaluation.engine import chunk_size_for, in_chunks
from dml.evaluation.outcomes import rows_of
from dml.evaluation.suites.base import Evaluation, Suite, check_common
from dml.losses.base import distance
from dml.models.embedder import device_of
from dml.retrieval.gallery import Gallery, Matches, Queries
from dml.retrieval.index import Search
from dml.retrieval.metrics import per_query, ranking

NEAR = 0.01  # CA- and QA- begin from a candidate among this share of the gallery, the nearest to the query
NORMAL = 1.959964  # standard errors of a mean, on either side, for 95%
LEAST = 6  # items that GTT needs: the natural first one, four others, and one more


@dataclass(frozen=True)
class Ranking(Suite):
    """CA+, CA-, QA+, QA-, TMA, ES:D, ES:R, LTM, GTM, GTT, by PGD of 32 steps of 3/8 eps, and their ERS.

    Each attacked row is the query of its scores. CA+ and CA- perturb a candidate, an item of the gallery; all others
    perturb the query. CA+, QA+ and TMA draw any item that the search does not ignore; CA- and QA- draw one of the
    nearest 1% to the query.

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
        """See :class:`dml.evaluation.suites.base.Suite`. ``outcomes``: what embedding shift, LTM and GTM leave.

        Raises:
            ValueError: the gallery is too small.
        """

        def work(chunk: np.ndarray) -> pd.DataFrame:
            return _Chunk(search, chunk, self.eps[0], self.steps, seed).table()

        table = in_chunks(rows, work, size=chunk_size_for(search), folder=folder, report=report)
        outcomes, values = table[table["score"] == ""], table[table["score"] != ""]
        each = values.pivot_table(index="query", columns="score", values="value")[list(values["score"].unique())]
        each["ERS"] = aims.ers(each)
        scores = {str(name): float(value) for name, value in each.mean().items()}
        # Each query has an ERS, and theirs is the mean, so that the interval is that of a mean.
        reach = NORMAL * float(each["ERS"].std(ddof=1)) / len(each) ** 0.5 if len(each) > 1 else math.inf
        scores |= {"ERS low": max(scores["ERS"] - reach, 0.0), "ERS high": min(scores["ERS"] + reach, 100.0)}
        return Evaluation(outcomes.drop(columns=["score", "value"]).reset_index(drop=True), scores)


class _Chunk:
    """The scores of some queries."""

    def __init__(self, search: Search, chunk: np.ndarray, eps: float, steps: int, seed: int) -> None:
        self.search, self.chunk, self.eps, self.steps, self.seed = search, chunk, eps, steps, seed
        self.model, self.gallery = search.model, search.gallery
        self.images, self.queries = search.images(chunk), search.queries(chunk)
        self.natural = search.query_embeddings[torch.from_numpy(chunk).to(self.gallery.labels.device)]
        least = int((~Matches.of(self.queries, self.gallery).ignored).sum(1).min())
        if least < LEAST:
            raise ValueError(
                f"the ranking scores need {LEAST} gallery items besides the query and its group; there are {least}"
            )

    def table(self) -> pd.DataFrame:
        """Outcomes (``score`` is empty) and scores, one row per query each."""
        draw = torch_generator(self.seed, "ranking partners", int(self.chunk[0]))
        total = len(self.gallery)
        nearest = ranking(self.natural, self.queries, self.gallery, max(1, round(NEAR * total)))
        anyone = any_item(self.queries, self.gallery, draw)
        place = torch.randint(nearest.shape[1], (len(nearest), 1), generator=draw).to(nearest.device)
        near = nearest.gather(1, place).squeeze(1)
        scores = self.rank_scores("+", anyone) | self.rank_scores("-", near)
        scores |= self.target_score(self.gallery.embeddings[any_item(self.queries, self.gallery, draw)])
        shifted = self.perturb(embedding_shift_objective(self.model, self.images), "ES", random_start=True)
        scores["ES:D"] = distance(shifted, self.natural)
        top = nearest[:, 0]
        counted, fixed = aims.others(self.queries, top, self.gallery), self.gallery.embeddings[top]
        objective = aims.query_objective(self.model, self.gallery, fixed, counted, raise_rank=False)  # as QA-
        first = ranking(self.perturb(objective, "GTT"), self.queries, self.gallery, 4)
        scores["GTT"] = 100.0 * (first == top[:, None]).any(1)

        tables = [self.outcome("none", 0.0, self.natural)]
        for name, embeddings in self.left(shifted).items():
            tables.append(self.outcome(name.split(":")[0].lower(), self.eps, embeddings))
            scores[name] = torch.tensor(tables[-1]["r1"].to_numpy()) * 100.0
        table = pd.concat(tables).assign(score="", value=0.0)
        values = [
            tables[0].assign(score=name, value=value.cpu().double().numpy(), attack="score", eps=self.eps)
            for name, value in scores.items()
        ]
        return pd.concat([table, *values], ignore_index=True)

    def rank_scores(self, sign: str, candidate: Tensor) -> dict[str, Tensor]:
        """CA and QA of one sign for gallery rows (B,): ranks in % after the candidate or the query is perturbed."""
        gallery, raise_rank = self.gallery, sign == "+"
        counted, fixed = aims.others(self.queries, candidate, gallery), gallery.embeddings[candidate]
        objective = aims.candidate_objective(self.model, gallery, self.natural, counted, raise_rank=raise_rank)
        images = to_float(self.search.split.images[candidate.cpu().numpy()], device_of(self.model))
        moved = self.perturb(objective, f"CA{sign}", images)
        by_candidate = aims.rank_percentile(
            distance(moved, self.natural), aims.distances(self.natural, gallery), counted
        )
        objective = aims.query_objective(self.model, gallery, fixed, counted, raise_rank=raise_rank)
        moved = self.perturb(objective, f"QA{sign}")
        by_query = aims.rank_percentile(distance(moved, fixed), aims.distances(moved, gallery), counted)
        return {f"CA{sign}": by_candidate, f"QA{sign}": by_query}

    def target_score(self, target: Tensor) -> dict[str, Tensor]:
        """TMA: similarity to a drawn item (B, D)."""
        return {"TMA": (self.perturb(aims.target_objective(self.model, target), "TMA") * target).sum(1)}

    def left(self, shifted: Tensor) -> dict[str, Tensor]:
        """Embeddings (B, D) after the attacks of which R@1 is the score."""
        wrong = self.gallery.embeddings[aims.nearest_wrong_item(self.natural, self.queries, self.gallery)]
        return {
            "ES:R": shifted,
            "LTM": self.perturb(aims.misrank_objective(self.model, self.queries, self.gallery), "LTM"),
            "GTM": self.perturb(lambda images: -distance(self.model(images), wrong), "GTM"),
        }

    def perturb(
        self, objective: Objective, name: str, images: Tensor | None = None, *, random_start: bool = False
    ) -> Tensor:
        """Embeddings (B, D) of the perturbed queries, or of other images, after the last step."""
        found = pgd(
            self.images if images is None else images,
            objective,
            Linf(self.eps),
            steps=self.steps,
            step_size=3 / 8 * self.eps,
            random_start=random_start,
            best=False,
            generator=torch_generator(self.seed, "ranking", name, int(self.chunk[0])),
        )
        with torch.no_grad():
            return self.model(found)

    def outcome(self, name: str, eps: float, embeddings: Tensor) -> pd.DataFrame:
        """Outcomes of the queries at other embeddings (B, D)."""
        return rows_of(self.chunk, name, Linf.norm, eps, per_query(embeddings, self.queries, self.gallery))


def any_item(queries: Queries, gallery: Gallery, draw: torch.Generator) -> Tensor:
    """Draw for each query one gallery row (B,) that the search does not ignore, all equally likely."""
    total, ignored = len(gallery), Matches.of(queries, gallery).ignored
    inside = bool((queries.own >= 0).all())
    first, start = (1, queries.own) if inside else (0, torch.zeros_like(queries.own))

    def drawn() -> Tensor:
        return (start + torch.randint(first, total, (len(queries),), generator=draw).to(start.device)) % total

    found = drawn()
    while bool((again := ignored.gather(1, found[:, None]).squeeze(1)).any()):
        found = torch.where(again, drawn(), found)
    return found
