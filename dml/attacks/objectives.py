"""What attacks maximise: functions that close over the model, the gallery and the queries.

Each returns an objective, pictures (B, 3, H, W) -> (B,), higher being worse for the defender. The nearest
items are chosen anew at every call, over the whole gallery.
"""

import torch
from torch import Tensor, nn

from dml.attacks.pgd import Objective
from dml.retrieval import Gallery, Queries, margin, similarities


def margin_objective(model: nn.Module, queries: Queries, gallery: Gallery) -> Objective:
    """The 1-NN margin: nearest wrong item minus nearest right item. At 0 or above the query is fooled."""

    def objective(images: Tensor) -> Tensor:
        return margin(model(images), queries, gallery)

    return objective


def targeted_objective(model: nn.Module, queries: Queries, gallery: Gallery, target: Tensor) -> Objective:
    """The margin of one wrong class (B,) a query: its nearest item minus the nearest right item."""

    def objective(images: Tensor) -> Tensor:
        similarity, right = similarities(model(images), queries, gallery)
        wanted = gallery.labels[None, :] == target[:, None]
        nearest_wanted = similarity.masked_fill(~wanted, -torch.inf).amax(1)
        return nearest_wanted - similarity.masked_fill(~right, -torch.inf).amax(1)

    return objective


def nearest_wrong_classes(embeddings: Tensor, queries: Queries, gallery: Gallery, count: int) -> Tensor:
    """The ``count`` wrong classes (B, count) whose nearest item is most similar to each query, best first.

    Raises:
        ValueError: the gallery holds too few wrong classes.
    """
    classes = gallery.labels.unique()
    if count > len(classes) - 1:
        raise ValueError(f"{count} target classes were asked for; the gallery holds {len(classes) - 1} wrong ones")
    similarity, right = similarities(embeddings, queries, gallery)
    column = torch.searchsorted(classes, gallery.labels)
    logits = torch.full((len(queries), len(classes)), -torch.inf, device=embeddings.device)
    logits.scatter_reduce_(1, column.expand_as(similarity), similarity.masked_fill(right, -torch.inf), "amax")
    own_class = torch.searchsorted(classes, queries.labels.clamp(max=int(classes[-1])))
    is_own = classes[own_class] == queries.labels
    logits[is_own.nonzero().squeeze(1), own_class[is_own]] = -torch.inf
    return classes[logits.topk(count, dim=1).indices]
