"""R@k, R-precision, MAP@R and the 1-NN margin, exact over a whole gallery, with the outcome of every query kept.

Similarity is the inner product of unit embeddings, which ranks as Euclidean distance does. What decides an outcome is
computed in float64, and a right item must lead by more than rounding could explain: ties and near-ties count against
the defender. Attacks climb :func:`advantage` instead, which is differentiable and keeps the model's precision.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dml.retrieval.ahead import count
from dml.retrieval.gallery import Gallery, Matches, Queries, at_once, finite, renormalised

CHUNK = 256  # queries ranked at a time
NEAR_TIE = 8  # machine epsilons of the embeddings' dtype: a lead of at most that is no lead


class Outcome(NamedTuple):
    """Per-query results, each (B,): rank-1 hit (bool), R-precision and average precision at R (float64).

    The mean of the last over queries is MAP@R.
    """

    r1: Tensor
    r_precision: Tensor
    map_r: Tensor


class _Scores(NamedTuple):
    """What decides the ranking of a chunk of queries.

    Attributes:
        rows: of the queries in the chunk.
        matches: which items are right, wrong and ignored.
        similarity: (B, N) float64, less the tolerance for right items. Where it is not a number, a wrong item counts
            as nearest and a right item as furthest.
        right: (B, R) similarities to the right items, best first, filled up with minus infinity.
        total: (B,) number of right items.
    """

    rows: slice
    matches: Matches
    similarity: Tensor
    right: Tensor
    total: Tensor

    def wrong(self) -> Tensor:
        """(B, N) similarities to wrong items; minus infinity at all others."""
        return self.similarity.masked_fill(~self.matches.wrong, -torch.inf)


def _scores(embeddings: Tensor, queries: Queries, gallery: Gallery, *, need_right: bool = True) -> Iterator[_Scores]:
    """Score all queries in float64, a chunk at a time.

    Raises:
        ValueError: a query has no right item in the gallery, and needs one.
    """
    lead = tolerance(embeddings, gallery)
    items = gallery.exact
    size = at_once(gallery, CHUNK)
    for first in range(0, len(queries), size):
        rows = slice(first, min(first + size, len(queries)))
        matches = Matches.of(queries.take(rows), gallery)
        row, column = matches.right.nonzero(as_tuple=True)
        total = row.bincount(minlength=len(matches.right))
        if need_right:
            _refuse_without_right(total, first)
        similarity = renormalised(embeddings[rows]) @ items.T
        if bool(similarity.sum().isnan()):
            unknown = similarity.isnan()
            similarity.masked_fill_(unknown, -torch.inf).masked_fill_(unknown & matches.wrong, torch.inf)
        similarity[row, column] -= lead
        right = similarity.new_full((len(total), int(total.max())), -torch.inf)
        right[row, torch.arange(len(row), device=row.device) - (total.cumsum(0) - total)[row]] = similarity[row, column]
        yield _Scores(rows, matches, similarity, right.sort(dim=1, descending=True).values, total)


def tolerance(embeddings: Tensor, gallery: Gallery) -> float:
    """By how much a right item must lead, as a similarity."""
    return NEAR_TIE * max(torch.finfo(given.dtype).eps for given in (embeddings, gallery.embeddings))


def _refuse_without_right(total: Tensor, first: int) -> None:
    """Raise ValueError if a query, numbered from ``first`` on, has no right item."""
    if bool((total == 0).any()):
        raise ValueError(f"query {first + int((total == 0).nonzero()[0])} has no right item in the gallery")


def advantage(embeddings: Tensor, gallery: Gallery, ahead: Tensor, behind: Tensor) -> Tensor:
    """(B,): similarity to the nearest item of the mask ``ahead`` (B, N) minus that to the nearest of ``behind``.

    The items are chosen outside the graph of derivatives, so that a backward pass costs two items per query instead
    of the whole gallery. A mask without an item counts as similarity minus infinity.
    """
    with torch.no_grad():
        similarity = embeddings @ gallery.embeddings.T
        items = [similarity.masked_fill(~mask, -torch.inf).max(1) for mask in (ahead, behind)]
    difference = gallery.embeddings[items[0].indices] - gallery.embeddings[items[1].indices]
    value = (embeddings * difference).sum(1)
    empty = items[0].values.isinf() | items[1].values.isinf()
    return torch.where(empty, items[0].values - items[1].values, value)


@torch.no_grad()
def margin(embeddings: Tensor, queries: Queries, gallery: Gallery) -> Tensor:
    """(B,) float64: similarity to the nearest wrong item minus that to the nearest right one, plus the tolerance.

    Below 0 the query survives, and exactly then :func:`per_query` gives it a rank-1 hit. Minus infinity where the
    gallery holds no wrong item.

    Raises:
        ValueError: a query has no right item in the gallery.
    """
    found = [scores.wrong().amax(1) - scores.right[:, 0] for scores in _scores(embeddings, queries, gallery)]
    return torch.cat(found) if found else embeddings.new_empty(0, dtype=torch.float64)


@torch.no_grad()
def disagreement(embeddings: Tensor, queries: Queries, gallery: Gallery) -> Tensor:
    """(B,) bool: the margin in float32 says that the query survives, and the exact ranking says that it does not.

    Raises:
        ValueError: a query has no right item in the gallery.
    """
    short = Gallery(gallery.embeddings.float(), gallery.labels, gallery.groups)
    found = []
    for scores in _scores(embeddings, queries, gallery):
        rough = advantage(embeddings[scores.rows].float(), short, scores.matches.wrong, scores.matches.right)
        found.append((rough < 0) & ~(scores.wrong().amax(1) < scores.right[:, 0]))
    return torch.cat(found) if found else torch.empty(0, dtype=torch.bool, device=embeddings.device)


@torch.no_grad()
def ranking(embeddings: Tensor, queries: Queries, gallery: Gallery, k: int) -> Tensor:
    """Gallery rows (B, k) nearest to each query, best first; among equals, wrong items come first.

    Ignored items come last, and appear only if ``k`` exceeds the number of the others.
    """
    found = []
    for scores in _scores(embeddings, queries, gallery, need_right=False):
        order = scores.matches.right.byte().argsort(dim=1, stable=True)  # wrong items first
        similarity = scores.similarity.masked_fill_(scores.matches.ignored, -torch.inf).gather(1, order)
        found.append(order.gather(1, similarity.argsort(dim=1, descending=True, stable=True)[:, :k]))
    return torch.cat(found) if found else torch.empty(0, k, dtype=torch.int64, device=embeddings.device)


@torch.no_grad()
def per_query(embeddings: Tensor, queries: Queries, gallery: Gallery) -> Outcome:
    """R@1, R-precision and MAP@R of each query (Musgrave et al. 2020, section 3.1).

    With R right items in the gallery, R-precision is the share of right items among the first R, and MAP@R the mean
    over i = 1..R of precision@i where item i is right, else 0. Ignored items take no place.

    Args:
        embeddings: (B, D) of the queries, of unit length.
        queries: their classes, groups and places in the gallery.
        gallery: what is searched.

    Raises:
        ValueError: a query has no right item in the gallery.
    """
    if not (_full_float32() and gallery.finite and finite(embeddings)):
        return _joined([_outcome(*_exact(scores)) for scores in _scores(embeddings, queries, gallery)])
    size, parts = at_once(gallery, 2 * CHUNK), []  # float32 takes half the room
    for first in range(0, len(queries), size):
        rows = torch.arange(first, min(first + size, len(queries)), device=queries.labels.device)
        found = count(embeddings[rows], queries.take(rows), gallery, tolerance(embeddings, gallery))
        _refuse_without_right(found.total, first)
        outcome = _outcome(found.ahead, found.total)
        if bool(found.open.any()):
            rest = rows[found.open]
            exact = [_outcome(*_exact(scores)) for scores in _scores(embeddings[rest], queries.take(rest), gallery)]
            for values, better in zip(outcome, _joined(exact), strict=True):
                values[found.open] = better
        parts.append(outcome)
    return _joined(parts)


def _full_float32() -> bool:
    """Return whether products are exact to float32; those in TF32 err by more than a counter allows for."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # not to be read once the flags of newer versions of torch were set
        return False


def _joined(parts: list[Outcome]) -> Outcome:
    if not parts:  # no query
        return Outcome(torch.empty(0, dtype=torch.bool), *torch.empty(2, 0, dtype=torch.float64))
    return Outcome(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _exact(scores: _Scores) -> tuple[Tensor, Tensor]:
    """(B, R) number of wrong items that come before each right one, and (B,) number of right items."""
    wrong = scores.wrong()
    wrong = wrong.topk(min(scores.right.shape[1], wrong.shape[1]), dim=1).values
    return torch.searchsorted(wrong.neg(), scores.right.neg(), right=True), scores.total


def _outcome(ahead: Tensor, total: Tensor) -> Outcome:
    number = torch.arange(1, ahead.shape[1] + 1, device=ahead.device)
    place = number + ahead
    hit = (number <= total[:, None]) & (place <= total[:, None])
    return Outcome(
        r1=ahead[:, 0] == 0,
        r_precision=hit.sum(1).double() / total,
        map_r=(hit * number.double() / place).sum(1) / total,
    )


@torch.no_grad()
def recall_at(embeddings: Tensor, queries: Queries, gallery: Gallery, k: int) -> Tensor:
    """(B,) bool: whether one of the k nearest items is right.

    Raises:
        ValueError: a query has no right item in the gallery.
    """
    hits = [(scores.wrong() >= scores.right[:, :1]).sum(1) < k for scores in _scores(embeddings, queries, gallery)]
    return torch.cat(hits) if hits else torch.empty(0, dtype=torch.bool, device=embeddings.device)
