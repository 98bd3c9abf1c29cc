"""Cosine, dot product and Euclidean distance, each as an inner product of unit vectors that ranks exactly alike."""

from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dml.api.embedding import Embedding
from dml.data.base import Split
from dml.retrieval.gallery import Gallery
from dml.retrieval.index import Search, embed

Similarity = Literal["cosine", "dot", "euclidean"]
SIMILARITIES = ("cosine", "dot", "euclidean")
SMALL, LARGE = 1e-6, 1e6  # embeddings shorter or longer than this are scaled first, well inside the range of float32


class Unit(nn.Module):
    """Cosine similarity: embeddings scaled to unit length. Those that have it already stay the same bits."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, images: Tensor) -> Tensor:
        """Return unit embeddings (B, D) of images (B, 3, H, W)."""
        found = self.embedding(images)
        before = found.detach().norm(dim=1, keepdim=True)
        is_unit = (before - 1).abs() <= 8 * torch.finfo(found.dtype).eps
        found = found / _largest(found.detach(), before)
        length = found.norm(dim=1, keepdim=True)
        return found / torch.where(is_unit, torch.ones_like(length), length).clamp_min(1e-12)


def _largest(values: Tensor, length: Tensor) -> Tensor:
    """(B, 1): the largest absolute value of each row (B, D) whose length (B, 1) is extreme, 1 for the others."""
    largest = values.abs().amax(1, keepdim=True)
    extreme = ((length < SMALL) | (length > LARGE)) & (largest > 0)
    return torch.where(extreme, largest.clamp_min(torch.finfo(values.dtype).tiny), torch.ones_like(largest))


class Reduced(nn.Module):
    """Dot products or Euclidean distances as inner products of unit vectors in float64, without approximation.

    A dot product is left as it is by ``q -> (q, 0)`` and ``g -> (g, sqrt(M^2 - |g|^2))``, where M is the largest
    length of a gallery item: all items then have length M. Scaling a query does not change its ranking, so both may be
    scaled to length 1 (Bachrach et al. 2014). The squared distance ``|q - g|^2 = |q|^2 - 2 (q . g - |g|^2 / 2)`` ranks
    as the dot product of ``(q, 1)`` and ``(g, -|g|^2 / 2)`` does. Before that, embeddings are centred and scaled by
    the gallery's mean and radius, which changes no ranking and keeps the numbers small.

    Queries and gallery items have different vectors: ``forward`` gives those of queries.

    Args:
        embedding: images -> embeddings (B, D).
        items: (N, D) embeddings of the gallery.
        similarity: ``dot`` or ``euclidean``.
    """

    def __init__(self, embedding: nn.Module, items: Tensor, similarity: Similarity) -> None:
        super().__init__()
        self.embedding, self.is_distance = embedding, similarity == "euclidean"
        items = items.double()
        centre = items.mean(0) if self.is_distance else torch.zeros_like(items[0])
        radius = (items - centre).norm(dim=1).max().clamp_min(torch.finfo(torch.float64).tiny)
        self.register_buffer("centre", centre)
        self.register_buffer("radius", radius)

    def gallery(self, items: Tensor) -> Tensor:
        """Return the unit vectors (N, D + 1 or 2) of gallery items (N, D)."""
        points = (items.double() - self.centre) / self.radius
        if self.is_distance:
            points = torch.cat([points, -points.square().sum(1, keepdim=True) / 2], 1)
        squares = points.square().sum(1, keepdim=True)
        bound = squares.max().clamp_min(torch.finfo(torch.float64).tiny)
        return torch.cat([points, (bound - squares).clamp_min(0).sqrt()], 1) / bound.sqrt()

    def forward(self, images: Tensor) -> Tensor:
        """Return the unit vectors (B, D + 1 or 2) of images (B, 3, H, W) as queries, float64."""
        points = (self.embedding(images).double() - self.centre) / self.radius
        if self.is_distance:
            points = F.pad(points, (0, 1), value=1.0)
        return F.pad(F.normalize(points, dim=1), (0, 1))


class SimilaritySearch(Search):
    """A search in which an image may have one vector as a query and another in the gallery."""

    @cached_property
    def query_embeddings(self) -> Tensor:
        """See :class:`dml.retrieval.index.Search`."""
        if not self.apart and not isinstance(self.model, Reduced):
            return self.gallery.embeddings
        return embed(self.model, self.query_split.images)


def search_over(model: Embedding, split: Split, queries: Split | None, similarity: Similarity) -> SimilaritySearch:
    """Embed a gallery.

    Args:
        model: images -> embeddings (B, D) of any length, in evaluation mode.
        split: the gallery.
        queries: apart from it, or None.
        similarity: what the gallery is ranked by.
    """
    device = model.place.device
    labels = torch.from_numpy(split.labels.copy()).to(device)
    groups = None if split.groups is None else torch.from_numpy(split.groups.copy()).to(device)
    if similarity == "cosine":
        whole: nn.Module = Unit(model)
        items = embed(whole, split.images)
    else:
        raw = embed(model, split.images)
        whole = Reduced(model, raw, similarity)
        items = whole.gallery(raw)
    return SimilaritySearch(whole, split, Gallery(items, labels, groups), split if queries is None else queries)
