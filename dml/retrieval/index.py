"""Exact retrieval over a whole gallery, a chunk at a time, with the outcome of every query kept.

Similarity is the inner product of unit embeddings, which ranks as Euclidean distance does. A query that is
itself in the gallery is excluded by its row number, never by its distance. Ties count against the defender.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dml.data import Pictures, Split
from dml.data.sampling import to_float
from dml.models.embedder import device_of, evaluating

CHUNK = 256  # queries ranked, and pictures embedded, at a time
CELLS = 2**22  # of a table of queries by gallery items, at a time: memory does not grow with the gallery


class Gallery(NamedTuple):
    """What is searched: unit embeddings (N, D) and their labels (N,)."""

    embeddings: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Queries:
    """What is looked for: the label (B,) of each query, and its own row (B,) in the gallery, -1 if it has none."""

    labels: Tensor
    own: Tensor

    def take(self, rows: Tensor) -> "Queries":
        """Some of the queries, by row number."""
        return Queries(self.labels[rows], self.own[rows])

    def __len__(self) -> int:
        return len(self.labels)


class Outcome(NamedTuple):
    """Per-query results, each (B,): the rank-1 hit, R-precision and MAP@R's summand (average precision at R)."""

    r1: Tensor
    r_precision: Tensor
    map_r: Tensor


def at_once(gallery: Gallery, most: int) -> int:
    """How many queries are compared with a gallery at a time: ``most``, and fewer if it is large."""
    return max(1, min(most, CELLS // len(gallery.labels)))


@torch.no_grad()
def embed(model: nn.Module, images: np.ndarray | Pictures) -> Tensor:
    """Embeddings (N, D) of uint8 pictures (N, H, W, 3), in evaluation mode, on the model's device."""
    device = device_of(model)
    with evaluating(model):
        chunks = [model(to_float(images[first : first + CHUNK], device)) for first in range(0, len(images), CHUNK)]
    return torch.cat(chunks)


class Matches(NamedTuple):
    """Which gallery items are what to which query, each (B, N): right ones, wrong ones, the query itself."""

    right: Tensor
    wrong: Tensor
    own: Tensor

    @classmethod
    def of(cls, queries: Queries, gallery: Gallery) -> "Matches":
        """Compare all labels, once for a set of queries."""
        same = queries.labels[:, None] == gallery.labels
        own = queries.own[:, None] == torch.arange(len(gallery.labels), device=gallery.labels.device)
        return cls(same & ~own, ~same, own)


def advantage(embeddings: Tensor, gallery: Gallery, ahead: Tensor, behind: Tensor) -> Tensor:
    """(B,): similarity to the nearest item of the mask ``ahead`` (B, N) minus that to the nearest of ``behind``.

    The items are looked up outside the graph of derivatives, so that a backward pass costs two items a query and
    not the whole gallery. A mask without an item counts as similarity minus infinity.
    """
    with torch.no_grad():
        similarity = embeddings @ gallery.embeddings.T
        items = [similarity.masked_fill(~mask, -torch.inf).max(1) for mask in (ahead, behind)]
    difference = gallery.embeddings[items[0].indices] - gallery.embeddings[items[1].indices]
    value = (embeddings * difference).sum(1)
    empty = items[0].values.isinf() | items[1].values.isinf()
    return torch.where(empty, items[0].values - items[1].values, value)


def margin(embeddings: Tensor, queries: Queries, gallery: Gallery) -> Tensor:
    """(B,): similarity to the nearest wrong item minus that to the nearest right one; at 0 or above, R@1 is lost."""
    matches = Matches.of(queries, gallery)
    return advantage(embeddings, gallery, matches.wrong, matches.right)


def ranking(embeddings: Tensor, queries: Queries, gallery: Gallery, k: int) -> Tensor:
    """Gallery rows (B, k) nearest to each query, best first."""
    return _ordered(embeddings, gallery, Matches.of(queries, gallery)).topk(k, dim=1).indices


@torch.no_grad()
def per_query(embeddings: Tensor, queries: Queries, gallery: Gallery) -> Outcome:
    """R@1, R-precision and MAP@R of each query (Musgrave et al. 2020, section 3.1).

    With R right items in the gallery (the query itself not counted), R-precision is the share of right ones
    among the first R, and MAP@R the mean over i = 1..R of precision@i where item i is right, else 0.

    Raises:
        ValueError: a query has no right item in the gallery.
    """
    parts: list[Outcome] = []
    size = at_once(gallery, CHUNK)
    for first in range(0, len(queries), size):
        rows = torch.arange(first, min(first + size, len(queries)), device=embeddings.device)
        chunk = queries.take(rows)
        matches = Matches.of(chunk, gallery)
        total = matches.right.sum(1)
        if bool((total == 0).any()):
            raise ValueError(f"query {first + int((total == 0).nonzero()[0])} has no right item in the gallery")
        top = _ordered(embeddings[rows], gallery, matches).topk(int(total.max()), dim=1).indices
        place = torch.arange(1, top.shape[1] + 1, device=top.device)
        hit = matches.right.gather(1, top) & (place <= total[:, None])
        precision = hit.cumsum(1) / place
        parts.append(
            Outcome(
                r1=hit[:, 0],
                r_precision=hit.sum(1) / total,
                map_r=(precision * hit).sum(1) / total,
            )
        )
    return Outcome(*(torch.cat(values) for values in zip(*parts, strict=True)))


@torch.no_grad()
def recall_at(embeddings: Tensor, queries: Queries, gallery: Gallery, k: int) -> Tensor:
    """(B,): whether one of the k nearest items is right."""
    hits = []
    size = at_once(gallery, CHUNK)
    for first in range(0, len(queries), size):
        rows = torch.arange(first, min(first + size, len(queries)), device=embeddings.device)
        matches = Matches.of(queries.take(rows), gallery)
        top = _ordered(embeddings[rows], gallery, matches).topk(min(k, len(gallery.labels)), dim=1).indices
        hits.append(matches.right.gather(1, top).any(1))
    return torch.cat(hits)


def _ordered(embeddings: Tensor, gallery: Gallery, matches: Matches) -> Tensor:
    """(B, N) similarities to sort by: right items give way by one unit in the last place, and so lose every tie."""
    similarity = (embeddings @ gallery.embeddings.T).masked_fill_(matches.own, -torch.inf)
    right = similarity[matches.right]
    similarity[matches.right] = torch.nextafter(right, torch.full_like(right, -torch.inf))
    return similarity


@dataclass(frozen=True)
class Search:
    """A model with a split's embeddings as its gallery; each image of the split is a query against all others.

    Attributes:
        model: in evaluation mode.
        split: the pictures.
        gallery: their embeddings and labels, on the model's device.
    """

    model: nn.Module
    split: Split
    gallery: Gallery

    @classmethod
    def over(cls, model: nn.Module, split: Split) -> "Search":
        """Embed a whole split."""
        model.eval()
        labels = torch.from_numpy(split.labels.copy()).to(device_of(model))
        return cls(model, split, Gallery(embed(model, split.images), labels))

    def queries(self, rows: np.ndarray) -> Queries:
        """The queries of some rows of the split."""
        own = torch.tensor(rows).to(self.gallery.labels.device)
        return Queries(self.gallery.labels[own], own)

    def natural(self) -> Outcome:
        """Per-query results of every image of the split, unperturbed."""
        return per_query(self.gallery.embeddings, self.queries(np.arange(len(self.split))), self.gallery)

    @torch.no_grad()
    def margin(self, images: Tensor, queries: Queries) -> Tensor:
        """The 1-NN margin (B,) of pictures; at 0 or above the query is fooled."""
        return margin(self.model(images), queries, self.gallery)
