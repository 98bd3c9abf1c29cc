"""How many wrong items come before each right one: counted in float32, and in float64 where that cannot tell.

A matrix product in float32 takes half the time of one in float64, and nearly all pairs of a right and a wrong item lie
further apart than it errs. The other pairs are compared again, so that the counts are those of float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dml.retrieval.gallery import CELLS, Gallery, Queries, renormalised, spread

SPARE = 8  # wrong items looked at beyond those that can decide, so that ties there rarely leave a query open
SHARE = 8  # a query with more doubtful pairs than items / SHARE is left open: comparing all its items is as cheap


class Ahead(NamedTuple):
    """The right items of some queries, best first.

    Attributes:
        ahead: (B, R) wrong items at least as similar as the i-th right item. Where that puts it behind rank ``total``
            the count may be too low, but not so low that it comes before. Where a query has fewer than R right items,
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
        embeddings: (B, D) of the queries, without NaN or infinity, as the gallery's.
        queries: their labels and groups.
        gallery: what they search.
        tolerance: by how much a right item must lead, as a similarity.
    """
    # Twice the most that an inner product of unit vectors can err by, in any order of summation (Higham 2002,
    # equation 3.5), and the rounding of the embeddings and of this sum.
    slack = (embeddings.shape[1] + 16) * torch.finfo(torch.float32).eps
    exact = renormalised(embeddings)
    with torch.autocast(exact.device.type, enabled=False):
        similarity = exact.float() @ gallery.rough.T
    row, column = gallery.by_class.pairs(queries.labels)
    kept = column != queries.own[row]
    kept &= (gallery.groups[column] != queries.groups[row]) | (queries.groups < 0)[row]
    leads = similarity[row, column] - tolerance
    similarity[row, column] = -torch.inf  # what remains is wrong
    grouped = gallery.by_group.pairs(queries.groups)  # a group of -1 is no item's
    similarity[grouped] = -torch.inf
    inside = (queries.own >= 0).nonzero().squeeze(1)
    similarity[inside, queries.own[inside]] = -torch.inf

    # Sort the right items, and find how many of the wrong are surely (low) and how many perhaps (high) before each.
    row, column, leads = row[kept], column[kept], leads[kept]
    total = row.bincount(minlength=len(exact))
    most = int(total.max())
    place = torch.arange(len(row), device=row.device) - (total.cumsum(0) - total)[row]
    right = similarity.new_full((len(exact), most), -torch.inf)
    right[row, place] = leads
    items = torch.zeros_like(right, dtype=column.dtype)
    items[row, place] = column
    right, order = right.sort(dim=1, descending=True)
    wrong = similarity.topk(min(most + SPARE, similarity.shape[1]), dim=1)
    falling = wrong.values.neg()
    low = torch.searchsorted(falling, -(right + slack), right=True)
    high = torch.searchsorted(falling, -(right - slack), right=True)
    earlier = torch.searchsorted(right.neg(), -(right + 2 * slack), right=True)  # right items, surely so
    # Compare again where the two differ and the item could still come in time.
    doubtful = (low < high) & (earlier + low < total[:, None])
    pairs = ((high - low) * doubtful).sum(1)
    beyond = (doubtful & (high == falling.shape[1])).any(1) & (falling.shape[1] < similarity.shape[1])
    left_open = beyond | (pairs > len(gallery) // SHARE)
    query, which = (doubtful & ~left_open[:, None]).nonzero(as_tuple=True)
    item, first, number = items.gather(1, order)[query, which], low[query, which], (high - low)[query, which]
    pair, within = spread(number)
    rival = wrong.indices[query[pair], first[pair] + within]
    lead = _similarity(exact, query, gallery, item) - tolerance
    ahead = _similarity(exact, query[pair], gallery, rival) >= lead[pair]
    low[query, which] += pair[ahead].bincount(minlength=len(query))
    low[torch.arange(most, device=low.device) >= total[:, None]] = len(gallery) + 1
    return Ahead(low.sort(dim=1).values, total, left_open)


def _similarity(exact: Tensor, query: Tensor, gallery: Gallery, item: Tensor) -> Tensor:
    """(P,) float64 similarities of pairs of a query and an item."""
    size = max(1, CELLS // exact.shape[1])
    parts = zip(query.split(size), item.split(size), strict=True)
    return torch.cat([(exact[one] * gallery.exact[other]).sum(1) for one, other in parts])
