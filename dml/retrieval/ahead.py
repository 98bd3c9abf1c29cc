"""How many wrong items come before each right one: counted in float32, and in float64 where that cannot tell.

A matrix product in float32 takes half the time of one in float64, and nearly all pairs of a right and a wrong item lie
further apart than it errs. The other pairs are compared again, so that the counts are those of float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dml.retrieval.gallery import CELLS, UNIT, Gallery, Queries, in_float32, lengths

SPARE = 8  # items looked at beyond the number of right ones; a query with more near-ties in a row is left open


class Ahead(NamedTuple):
    """The right items of some queries, best first.

    Attributes:
        ahead: (B, R) wrong items at least as similar as the i-th right item. Where that puts it behind rank ``total``
            the count may be wrong, but never so low that it comes before. Where a query has fewer than R right items,
            counts exceed the gallery.
        total: (B,) number of right items.
        open: (B,) bool: the counts of this query are not known.
    """

    ahead: Tensor
    total: Tensor
    open: Tensor


def count(embeddings: Tensor, queries: Queries, gallery: Gallery, tolerance: float) -> Ahead:
    """Count the wrong items before each right one.

    Args:
        embeddings: (B, D) of the queries, without NaN or infinity, as the gallery's; in float64 of unit length, in
            other formats of any.
        queries: their labels and groups.
        gallery: what they search.
        tolerance: by how much a right item must lead, as a similarity.
    """
    length = lengths(embeddings)
    with torch.autocast(embeddings.device.type, enabled=False):
        similarity = in_float32(embeddings, length) @ gallery.rough.T
    row, column = _ignored(queries, gallery)
    similarity[row, column] = -torch.inf
    same = gallery.labels[column] == queries.labels[row]
    total = gallery.by_class.sizes(queries.labels) - row[same].bincount(minlength=len(queries))
    most = max(1, int(total.max()))
    values, items = similarity.topk(min(most + SPARE, len(gallery)), dim=1)
    right = (gallery.labels[items] == queries.labels[:, None]) & values.isfinite()
    ahead = (~right).cumsum(1)

    # Float64 can order two items otherwise only if float32 has them no further apart than `near`: twice the largest
    # error of an inner product of unit vectors, in any order of summation (Higham 2002, equation 3.5), plus what the
    # lengths of the embeddings err by, what is lost in rounding embeddings and differences, and the tolerance.
    near = (embeddings.shape[1] + 4 * UNIT + 16) * torch.finfo(torch.float32).eps + tolerance
    # An item more than `near` behind place `total` certainly has `total` items before it. Twice that, so that whatever
    # could overtake an item nearer than that is still compared.
    late = values.gather(1, (total - 1).clamp(min=0)[:, None]) - 2 * near
    values.masked_fill_(values < late, -torch.inf)
    left_open = values[:, -1].isfinite() & (values.shape[1] < len(gallery))
    left_open |= (values[:, :-SPARE] - values[:, SPARE:] <= near).any(1)
    values.masked_fill_(left_open[:, None], -torch.inf)
    for shift in range(1, SPARE):
        doubtful = values[:, :-shift] - values[:, shift:] <= near
        if not bool(doubtful.any()):
            break
        query, place = (doubtful & (right[:, :-shift] != right[:, shift:])).nonzero(as_tuple=True)
        lead = _lead(embeddings, query, gallery, items[query, place], items[query, place + shift])
        lead /= length[query]
        wrong_first = ~right[query, place]
        # Float32 has counted the wrong item of a pair as ahead if it comes first. Float64 may say otherwise.
        passed, overtaken = wrong_first & (lead < -tolerance), ~wrong_first & (lead <= tolerance)
        ahead[query[passed], place[passed] + shift] -= 1
        ahead[query[overtaken], place[overtaken]] += 1
    ahead = ahead.masked_fill_(~right, len(gallery) + 1).sort(dim=1).values
    return Ahead(ahead[:, :most], total, left_open)


def _ignored(queries: Queries, gallery: Gallery) -> tuple[Tensor, Tensor]:
    """Pairs of a query and an item that it ignores: each item of its group, and itself, once."""
    row, column = gallery.by_group.pairs(queries.groups)  # a group of -1 is no item's
    apart = ((queries.own >= 0) & (gallery.groups[queries.own] != queries.groups)).nonzero().squeeze(1)
    return torch.cat([row, apart]), torch.cat([column, queries.own[apart]])


def _lead(embeddings: Tensor, query: Tensor, gallery: Gallery, first: Tensor, second: Tensor) -> Tensor:
    """(P,) float64: by how much the first item of each pair is more similar to its query than the second."""
    size, found = max(1, CELLS // embeddings.shape[1]), []
    for asked, one, other in zip(query.split(size), first.split(size), second.split(size), strict=True):
        difference = gallery.embeddings[one].double().div_(gallery.lengths[one, None])
        difference -= gallery.embeddings[other].double().div_(gallery.lengths[other, None])
        found.append(difference.mul_(embeddings[asked].double()).sum(1))
    return torch.cat(found)
