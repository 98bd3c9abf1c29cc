"""Objectives of the ranking attacks that robust metric learning is measured with, and the scores made of them.

After Zhou et al. (2021) and Zhou and Patel (2022). Distances are Euclidean, as published.
:mod:`dml.evaluation.suites.ranking` lists the differences from their public code.
"""

from collections.abc import Mapping
from typing import TypeVar

import pandas as pd
import torch
from torch import Tensor, nn

from dml.attacks.objectives.base import Objective
from dml.losses.base import distance
from dml.retrieval.gallery import Gallery, Matches, Queries


def distances(embeddings: Tensor, gallery: Gallery) -> Tensor:
    """Return the (B, N) Euclidean distances from unit vectors (B, D) to the gallery."""
    return (2 - 2 * embeddings @ gallery.embeddings.T).clamp_min(1e-12).sqrt()


def others(queries: Queries, candidate: Tensor, gallery: Gallery) -> Tensor:
    """Return (B, N), the items among which a candidate's rank is counted.

    These are all items that the search does not ignore, without the candidate itself.

    Args:
        queries: B queries.
        candidate: (B,) one gallery row per query.
        gallery: that is searched.
    """
    place = torch.arange(len(gallery.labels), device=gallery.labels.device)
    return ~Matches.of(queries, gallery).ignored & (place != candidate[:, None])


def candidate_objective(
    model: nn.Module, gallery: Gallery, query: Tensor, counted: Tensor, *, raise_rank: bool
) -> Objective:
    """CA+ and CA-: move a candidate up or down in the ranking of one query, by perturbing the candidate.

    Args:
        model: images (B, 3, H, W) of candidates -> embeddings.
        gallery: that is searched.
        query: (B, D) embeddings of the clean queries.
        counted: (B, N) from :func:`others`.
        raise_rank: towards the top (CA+), else towards the bottom (CA-).
    """
    theirs = distances(query, gallery)
    return lambda images: _ranked(distance(model(images), query), theirs, counted, raise_rank)


def query_objective(
    model: nn.Module, gallery: Gallery, candidate: Tensor, counted: Tensor, *, raise_rank: bool
) -> Objective:
    """QA+ and QA-: move a candidate up or down in the ranking of one query, by perturbing the query.

    Args:
        model: images (B, 3, H, W) of queries -> embeddings.
        gallery: that is searched.
        candidate: (B, D) embeddings of the clean candidates.
        counted: (B, N) from :func:`others`.
        raise_rank: towards the top (QA+), else towards the bottom (QA-).
    """

    def objective(images: Tensor) -> Tensor:
        embeddings = model(images)
        return _ranked(distance(embeddings, candidate), distances(embeddings, gallery), counted, raise_rank)

    return objective


def _ranked(own: Tensor, theirs: Tensor, counted: Tensor, raise_rank: bool) -> Tensor:
    """Minus the mean hinge over all items that are still on the wrong side of the candidate."""
    behind = own[:, None] - theirs if raise_rank else theirs - own[:, None]
    return -(behind.clamp_min(0) * counted).sum(1) / counted.sum(1)


def rank_percentile(own: Tensor, theirs: Tensor, counted: Tensor) -> Tensor:
    """Return (B,), the share in % of the counted items that are nearer than the candidate.

    0 is the top of the ranking.

    Args:
        own: (B,) distance between query and candidate.
        theirs: (B, N) distances between query and all items.
        counted: (B, N) from :func:`others`.
    """
    return 100 * ((own[:, None] > theirs) & counted).sum(1).double() / counted.sum(1)


def target_objective(model: nn.Module, target: Tensor) -> Objective:
    """TMA: the inner product with a fixed embedding (B, D)."""
    return lambda images: (model(images) * target).sum(1)


def misrank_objective(model: nn.Module, queries: Queries, gallery: Gallery) -> Objective:
    """LTM: even the furthest wrong item should be nearer than the nearest right one (Wang et al. 2020)."""
    matches = Matches.of(queries, gallery)

    def objective(images: Tensor) -> Tensor:
        apart = distances(model(images), gallery)
        right = apart.masked_fill(~matches.right, torch.inf).amin(1)
        return right - apart.masked_fill(~matches.wrong, -torch.inf).amax(1)

    return objective


def nearest_wrong_item(embeddings: Tensor, queries: Queries, gallery: Gallery) -> Tensor:
    """Return the target of GTM: the row (B,) of the nearest item of another class."""
    wrong = Matches.of(queries, gallery).wrong
    return (embeddings @ gallery.embeddings.T).masked_fill(~wrong, -torch.inf).argmax(1)


Score = TypeVar("Score", float, pd.Series)


def ers(scores: Mapping[str, Score]) -> Score:
    """Return the empirical robustness score: the mean of the ten scores, each on a scale of 0 to 100.

    A collapsed embedding can earn it. Read it beside adversarial R@1 and the embedding's spread (Zhou and Patel 2022).

    Args:
        scores: by name, of one query or on average, or one per query.
    """
    parts = [
        2 * scores["CA+"],
        100 - scores["CA-"],
        2 * scores["QA+"],
        100 - scores["QA-"],
        100 * (1 - scores["TMA"]),
        50 * (2 - scores["ES:D"]),
        scores["ES:R"],
        scores["LTM"],
        scores["GTM"],
        scores["GTT"],
    ]
    return sum(parts) / len(parts)
