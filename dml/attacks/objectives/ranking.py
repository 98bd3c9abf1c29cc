"""The ranking attacks that robust deep metric learning has been measured with (Zhou et al. 2021; Zhou and Patel 2022).

Distances are Euclidean, as published. Three faults of public code are not repeated: the query never counts as an
item of its own ranking, the target of GTM is an index into the whole gallery, and what is reported is measured
after the last step. The query attacks are the pure ones: no term keeps other items in their places.
"""

import torch
from torch import Tensor, nn

from dml.attacks.optimisers.pgd import Objective
from dml.losses import distance
from dml.retrieval.index import Gallery, Matches, Queries


def distances(embeddings: Tensor, gallery: Gallery) -> Tensor:
    """(B, N) Euclidean distances between unit vectors."""
    return (2 - 2 * embeddings @ gallery.embeddings.T).clamp_min(1e-12).sqrt()


def others(rows: Tensor, partner: Tensor, gallery: Gallery) -> Tensor:
    """(B, N): the items that a rank is counted among: neither the picture's own row nor its partner's."""
    place = torch.arange(len(gallery.labels), device=gallery.labels.device)
    return (place != rows[:, None]) & (place != partner[:, None])


def candidate_objective(
    model: nn.Module, gallery: Gallery, rows: Tensor, partner: Tensor, *, raise_rank: bool
) -> Objective:
    """CA+ and CA-: move a candidate up or down in the ranking of one query, by perturbing the candidate.

    Args:
        model: pictures of candidates -> embeddings.
        gallery: what is searched.
        rows: (B,) the candidates' own rows in the gallery.
        partner: (B,) rows of the queries.
        raise_rank: towards the top (CA+), else towards the bottom (CA-).
    """
    query = gallery.embeddings[partner]
    theirs, counted = distances(query, gallery), others(rows, partner, gallery)

    def objective(images: Tensor) -> Tensor:
        return _ranked(distance(model(images), query), theirs, counted, raise_rank)

    return objective


def query_objective(
    model: nn.Module, gallery: Gallery, rows: Tensor, partner: Tensor, *, raise_rank: bool
) -> Objective:
    """QA+ and QA-: move one candidate up or down in the ranking of a query, by perturbing the query.

    Args as for :func:`candidate_objective`, with queries and candidates exchanged.
    """
    candidate, counted = gallery.embeddings[partner], others(rows, partner, gallery)

    def objective(images: Tensor) -> Tensor:
        embeddings = model(images)
        return _ranked(distance(embeddings, candidate), distances(embeddings, gallery), counted, raise_rank)

    return objective


def _ranked(own: Tensor, theirs: Tensor, counted: Tensor, raise_rank: bool) -> Tensor:
    """Minus the mean hinge over all items that are still on the wrong side of the candidate."""
    behind = own[:, None] - theirs if raise_rank else theirs - own[:, None]
    return -(behind.clamp_min(0) * counted).sum(1) / counted.sum(1)


def rank_percentile(own: Tensor, theirs: Tensor, counted: Tensor) -> Tensor:
    """(B,): share in % of the counted items that are nearer than the candidate; 0 is the top of the ranking."""
    return 100 * ((own[:, None] > theirs) & counted).sum(1).double() / counted.sum(1)


def target_objective(model: nn.Module, target: Tensor) -> Objective:
    """TMA: the largest inner product with a fixed embedding (B, D)."""
    return lambda images: (model(images) * target).sum(1)


def misrank_objective(model: nn.Module, queries: Queries, gallery: Gallery) -> Objective:
    """LTM (Wang et al. 2020): even the furthest wrong item should be nearer than the nearest right one."""
    matches = Matches.of(queries, gallery)

    def objective(images: Tensor) -> Tensor:
        apart = distances(model(images), gallery)
        right = apart.masked_fill(~matches.right, torch.inf).amin(1)
        return right - apart.masked_fill(~matches.wrong, -torch.inf).amax(1)

    return objective


def nearest_wrong_item(embeddings: Tensor, queries: Queries, gallery: Gallery) -> Tensor:
    """GTM's target: the row (B,) of the nearest item of another class."""
    wrong = Matches.of(queries, gallery).wrong
    return (embeddings @ gallery.embeddings.T).masked_fill(~wrong, -torch.inf).argmax(1)


def translocation_objective(model: nn.Module, queries: Queries, gallery: Gallery, top: Tensor) -> Objective:
    """GTT: push the natural first item, row ``top`` (B,), behind the four items that are then nearest."""
    counted = others(queries.own, top, gallery)

    def objective(images: Tensor) -> Tensor:
        apart = distances(model(images), gallery)
        fourth = apart.masked_fill(~counted, torch.inf).topk(4, dim=1, largest=False).values[:, 3]
        return apart.gather(1, top[:, None]).squeeze(1) - fourth

    return objective


def ers(scores: dict[str, float]) -> float:
    """Empirical robustness score (Zhou and Patel 2022): the mean of the ten scores, each on a scale of 0 to 100.

    It can be earned by a collapsed embedding; read it beside adversarial R@1 and the embedding's spread.
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
