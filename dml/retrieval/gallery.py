"""Galleries, queries, and which gallery items are right, wrong or ignored for each query."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

UNIT = 4  # machine epsilons of float32 by which the length of a unit embedding may err
CELLS = 2**22  # cells of a (queries, items) table held at a time: memory does not grow with the gallery


class Lists:
    """The items that have each value, as lists: a mask of all pairs takes longer than the search."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.order = values.sort(stable=True)

    def pairs(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Places in ``wanted`` (B,) and the items of that value, each (P,), in the order of ``wanted``."""
        first = torch.searchsorted(self.values, wanted)
        place, within = spread(torch.searchsorted(self.values, wanted, right=True) - first)
        return place, self.order[first[place] + within]

    def sizes(self, wanted: Tensor) -> Tensor:
        """(B,) number of items of each value in ``wanted`` (B,)."""
        return torch.searchsorted(self.values, wanted, right=True) - torch.searchsorted(self.values, wanted)


@dataclass(frozen=True)
class Gallery:
    """The items that are searched.

    Attributes:
        embeddings: (N, D), of unit length.
        labels: (N,) class of each item.
        groups: (N,) track, burst or camera of each item, numbers of at least 0. By default each item forms its own
            group, numbered by its row.

    Raises:
        ValueError: there is no item.
    """

    embeddings: Tensor
    labels: Tensor
    groups: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not len(self.labels):
            raise ValueError("the gallery holds no item")
        if self.groups is None:
            object.__setattr__(self, "groups", torch.arange(len(self.labels), device=self.labels.device))

    @cached_property
    def exact(self) -> Tensor:
        """(N, D) embeddings as :func:`renormalised` gives them, computed once."""
        return renormalised(self.embeddings)

    @cached_property
    def rough(self) -> Tensor:
        """(N, D) the embeddings as :func:`in_float32` gives them, computed once."""
        return in_float32(self.embeddings, self.lengths)

    @cached_property
    def lengths(self) -> Tensor:
        """(N,) float64 lengths of the embeddings, see :func:`lengths`, computed once."""
        return lengths(self.embeddings)

    @cached_property
    def finite(self) -> bool:
        """What :func:`finite` says of the embeddings, computed once."""
        return finite(self.embeddings)

    @cached_property
    def by_class(self) -> Lists:
        """The items of each class."""
        return Lists(self.labels)

    @cached_property
    def by_group(self) -> Lists:
        """The items of each group."""
        return Lists(self.groups)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Queries:
    """The queries of a search.

    Attributes:
        labels: (B,) class of each query.
        groups: (B,) group of each query, numbered as in the gallery; -1 matches no group.
        own: (B,) row of the query itself in the gallery, -1 if it is not there.
    """

    labels: Tensor
    groups: Tensor
    own: Tensor

    def take(self, rows: Tensor) -> "Queries":
        """Some of the queries, by row number."""
        return Queries(self.labels[rows], self.groups[rows], self.own[rows])

    def __len__(self) -> int:
        return len(self.labels)


class Matches(NamedTuple):
    """Masks (B, N) that sort the gallery items for each query; exactly one of the three holds for every item."""

    right: Tensor
    wrong: Tensor
    ignored: Tensor

    @classmethod
    def of(cls, queries: Queries, gallery: Gallery) -> "Matches":
        """Compare all labels, once for a set of queries.

        The query itself and all items of its group are ignored, whatever their class, as re-identification protocols
        do. Without groups only the query itself is ignored.
        """
        same = queries.labels[:, None] == gallery.labels
        ignored = (queries.groups[:, None] == gallery.groups) & (queries.groups >= 0)[:, None]
        inside = (queries.own >= 0).nonzero().squeeze(1)
        ignored[inside, queries.own[inside]] = True
        return cls(same & ~ignored, ~same & ~ignored, ignored)


def renormalised(embeddings: Tensor) -> Tensor:
    """Embeddings (B, D) in float64, scaled to unit length again if they came in a shorter format.

    Float32 embeddings of "unit" length differ in length by about 1e-7. Where embeddings lie closer together than
    that, their lengths would decide the ranking.
    """
    if embeddings.dtype == torch.float64:
        return embeddings
    return F.normalize(embeddings.double(), dim=1)


def lengths(embeddings: Tensor) -> Tensor:
    """(B,) float64 lengths that :func:`renormalised` divides embeddings by."""
    if embeddings.dtype == torch.float64:
        return embeddings.new_ones(len(embeddings))
    # Some rows at a time: their copies in float64 stay in the cache.
    parts = [torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) for rows in embeddings.split(256)]
    return torch.cat(parts).clamp(min=1e-12)


def in_float32(embeddings: Tensor, length: Tensor) -> Tensor:
    """Embeddings (B, D) in float32: as they came if all lengths (B,) err by at most ``UNIT`` machine epsilons."""
    rounding = UNIT * torch.finfo(torch.float32).eps
    if embeddings.dtype == torch.float32 and bool(((length - 1).abs() <= rounding).all()):
        return embeddings
    return renormalised(embeddings).float()


def finite(embeddings: Tensor) -> bool:
    """Return whether embeddings (N, D) hold no NaN, no infinity, and nothing so large that their sum overflows."""
    return bool(embeddings.sum().isfinite())


def spread(count: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat place i ``count[i]`` times: the places (P,), and the number of each repetition, from 0."""
    place = torch.arange(len(count), device=count.device).repeat_interleave(count)
    return place, torch.arange(len(place), device=count.device) - (count.cumsum(0) - count)[place]


def at_once(gallery: Gallery, most: int) -> int:
    """How many queries to compare with a gallery at a time: ``most``, or fewer if the gallery is large."""
    return max(1, min(most, CELLS // len(gallery)))
