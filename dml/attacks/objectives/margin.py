"""The 1-NN margin, away from the right class or towards one wrong class."""

import torch
from torch import Tensor, nn

from dml.attacks.objectives.base import Objective
from dml.retrieval.gallery import Gallery, Matches, Queries
from dml.retrieval.metrics import advantage


def margin_objective(model: nn.Module, queries: Queries, gallery: Gallery) -> Objective:
    """Return the 1-NN margin: similarity to the nearest wrong item minus that to the nearest right item.

    A query breaks at 0 or above.

    Args:
        model: images (B, 3, H, W) -> unit embeddings (B, D).
        queries: of the B images.
        gallery: that is searched.
    """
    matches = Matches.of(queries, gallery)
    right, wrong = matches.right, matches.wrong

    def objective(images: Tensor) -> Tensor:
        return advantage(model(images), gallery, wrong, right)

    return objective


def targeted_objective(model: nn.Module, queries: Queries, gallery: Gallery, target: Tensor) -> Objective:
    """Return the margin of one wrong class per query: its nearest item minus the nearest right item.

    Args:
        model, queries, gallery: see :func:`margin_objective`.
        target: (B,) label of the wrong class.
    """
    matches = Matches.of(queries, gallery)
    right, wanted = matches.right, matches.wrong & (target[:, None] == gallery.labels)

    def objective(images: Tensor) -> Tensor:
        return advantage(model(images), gallery, wanted, right)

    return objective


def nearest_wrong_classes(embeddings: Tensor, queries: Queries, gallery: Gallery, count: int) -> Tensor:
    """Return the wrong classes (B, count) whose nearest item is most similar to each query, best first.

    Args:
        embeddings: (B, D) of the queries.
        queries, gallery: see :func:`margin_objective`.
        count: classes per query.

    Raises:
        ValueError: the gallery holds too few wrong classes.
    """
    classes = gallery.labels.unique()
    if count > len(classes) - 1:
        raise ValueError(f"{count} target classes are too many; the gallery holds {len(classes) - 1} wrong classes")
    similarity = (embeddings @ gallery.embeddings.T).masked_fill(~Matches.of(queries, gallery).wrong, -torch.inf)
    column = torch.searchsorted(classes, gallery.labels)
    logits = similarity.new_full((len(queries), len(classes)), -torch.inf)
    logits.scatter_reduce_(1, column.expand_as(similarity), similarity, "amax")
    return classes[logits.topk(count, dim=1).indices]
