"""A model and the images it searches: embeds a gallery once, and answers queries exactly."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from dml.data.base import Pictures, Split
from dml.data.transforms import to_float
from dml.models.embedder import device_of, evaluating
from dml.retrieval.gallery import Gallery, Queries
from dml.retrieval.metrics import Outcome, margin, per_query

CHUNK = 256  # images embedded at a time


@torch.no_grad()
def embed(model: nn.Module, images: np.ndarray | Pictures) -> Tensor:
    """Embeddings (N, D) of uint8 images (N, H, W, 3), in evaluation mode, on the model's device."""
    device = device_of(model)
    with evaluating(model):
        chunks = [model(to_float(images[first : first + CHUNK], device)) for first in range(0, len(images), CHUNK)]
    return torch.cat(chunks)


@dataclass(frozen=True)
class Search:
    """A model with an embedded gallery, and the images that are queries to it.

    Attributes:
        model: in evaluation mode.
        split: the images of the gallery.
        gallery: their embeddings, labels and groups, on the model's device.
        query_split: the images that are queries. Where it is ``split`` itself, each image is a query to all others.
    """

    model: nn.Module
    split: Split
    gallery: Gallery
    query_split: Split

    @classmethod
    def over(cls, model: nn.Module, split: Split, queries: Split | None = None) -> "Search":
        """Embed a gallery.

        Args:
            model: put into evaluation mode.
            split: the gallery.
            queries: images that are queries and not in the gallery; None makes each image of ``split`` a query.

        Raises:
            ValueError: the queries have groups and the gallery has none.
        """
        model.eval()
        if queries is not None and queries.groups is not None and split.groups is None:
            raise ValueError("the queries have groups; give the gallery's images groups of the same numbering")
        device = device_of(model)
        labels = torch.from_numpy(split.labels.copy()).to(device)
        groups = None if split.groups is None else torch.from_numpy(split.groups.copy()).to(device)
        gallery = Gallery(embed(model, split.images), labels, groups)
        return cls(model, split, gallery, split if queries is None else queries)

    @property
    def apart(self) -> bool:
        """Whether the queries are images outside the gallery."""
        return self.query_split is not self.split

    def queries(self, rows: np.ndarray) -> Queries:
        """The queries of some rows (B,) of the query split."""
        device = self.gallery.labels.device
        chosen = torch.tensor(rows).to(device)
        if not self.apart:
            return Queries(self.gallery.labels[chosen], self.gallery.groups[chosen], chosen)
        none = torch.full_like(chosen, -1)
        labels = torch.from_numpy(self.query_split.labels[rows]).to(device)
        groups = self.query_split.groups
        return Queries(labels, none if groups is None else torch.from_numpy(groups[rows]).to(device), none)

    def images(self, rows: np.ndarray) -> Tensor:
        """The natural images (B, 3, H, W) of some queries, in [0, 1], on the model's device."""
        return to_float(self.query_split.images[rows], device_of(self.model))

    @cached_property
    def query_embeddings(self) -> Tensor:
        """(Q, D) embeddings of all natural queries, computed once."""
        return embed(self.model, self.query_split.images) if self.apart else self.gallery.embeddings

    def natural(self) -> Outcome:
        """The outcome of every query, unperturbed."""
        return per_query(self.query_embeddings, self.queries(np.arange(len(self))), self.gallery)

    @torch.no_grad()
    def margin(self, images: Tensor, queries: Queries) -> Tensor:
        """The exact 1-NN margin (B,) float64 of query images (B, 3, H, W); below 0 the query survives."""
        return margin(self.model(images), queries, self.gallery)

    def __len__(self) -> int:
        return len(self.query_split)
