"""What attacks maximise: functions that close over the model, the gallery and the queries.

Each returns an objective, pictures (B, 3, H, W) -> (B,), higher being worse for the defender. The nearest
items are chosen anew at every call, over the whole gallery.
"""

import torch
from torch import Tensor, nn

from dml.attacks.pgd import Objective
from dml.retrieval import Gallery, Matches, Queries, advantage


def margin_objective(model: nn.Module, queries: Queries, gallery: Gallery) -> Objective:
    """The 1-NN margin: nearest wrong item minus nearest right item. At 0 or above the query is fooled."""

    matches = Matches.of(queries, gallery)

    def objective(images: Tensor) -> Tensor:
        return advantage(model(images), gallery, matches.wrong, matches.right)

    return objective


def targeted_objective(model: nn.Module, queries: Queries, gallery: Gallery, target: Tensor) -> Objective:
    """The margin of one wrong class (B,) a query: its nearest item minus the nearest right item."""

    right = Matches.of(queries, gallery).right
    wanted = target[:, None] == gallery.labels

    def objective(images: Tensor) -> Tensor:
        return advantage(model(images), gallery, wanted, right)

    return objective


def nearest_wrong_classes(embeddings: Tensor, queries: Queries, gallery: Gallery, count: int) -> Tensor:
    """The ``count`` wrong classes (B, count) whose nearest item is most similar to each query, best first.

    Raises:
        ValueError: the gallery holds too few wrong classes.
    """
    classes = gallery.labels.unique()
    if count > len(classes) - 1:
        raise ValueError(f"{count} target classes were asked for; the gallery holds {len(classes) - 1} wrong ones")
    similarity = embeddings @ gallery.embeddings.T
    column = torch.searchsorted(classes, gallery.labels)
    logits = similarity.new_full((len(queries), len(classes)), -torch.inf)
    logits.scatter_reduce_(1, column.expand_as(similarity), similarity, "amax")
    logits.masked_fill_(queries.labels[:, None] == classes, -torch.inf)
    return classes[logits.topk(count, dim=1).indices]
