"""Objectives on whole rankings: MAP@R, and what an attacker sees who is shown ranks alone."""

import torch
from torch import Tensor, nn

from dml.attacks.objectives.base import Objective
from dml.retrieval.gallery import Gallery, Matches, Queries
from dml.retrieval.metrics import per_query, ranking

RANK_WIDTH = 0.01  # difference of similarity over which the soft rank changes by most of one place


def map_objective(model: nn.Module, queries: Queries, gallery: Gallery) -> Objective:
    """Return minus the average precision at R, with the gradient of its soft form.

    Ranks become sums of sigmoids of similarity differences (Smooth-AP, Brown et al. 2020). The soft form runs over all
    right items, where the exact one is cut at the first R places. The value is the exact one, so an optimiser which
    keeps the best point keeps the one with the lowest average precision. Of the wrong items only the R nearest enter:
    no other can take one of the first R places.

    Args:
        model: images (B, 3, H, W) -> unit embeddings (B, D).
        queries: of the B images.
        gallery: that is searched.
    """
    matches = Matches.of(queries, gallery)
    total = matches.right.sum(1)
    most = int(total.max())
    right_items = matches.right.int().topk(most, dim=1).indices
    present = torch.arange(most, device=total.device) < total[:, None]

    def objective(images: Tensor) -> Tensor:
        embeddings = model(images)
        with torch.no_grad():
            exact = per_query(embeddings, queries, gallery).map_r
            similarity = (embeddings @ gallery.embeddings.T).masked_fill(~matches.wrong, -torch.inf)
            wrong_items = similarity.topk(min(most, similarity.shape[1]), dim=1).indices
            # As many as the query has right items, and no item that only fills the table.
            counted = present[:, : wrong_items.shape[1]] & matches.wrong.gather(1, wrong_items)
        right, wrong = (
            torch.einsum("bd,bkd->bk", embeddings, gallery.embeddings[items]) for items in (right_items, wrong_items)
        )
        ahead_wrong, ahead_right = (
            (torch.sigmoid((items[:, None] - right[:, :, None]) / RANK_WIDTH) * mask[:, None]).sum(2)
            for items, mask in ((wrong, counted), (right, present))
        )
        place = 0.5 + ahead_right  # an item is half ahead of itself
        soft = (place / (place + ahead_wrong) * present).sum(1) / total
        return -(exact + soft - soft.detach())

    return objective


def rank_objective(model: nn.Module, queries: Queries, gallery: Gallery) -> Objective:
    """Return the mean log2 rank of the right items: all that an attacker sees who is shown no similarity.

    It is piecewise constant and has no gradient: use it with attacks that need none. It sees right items move that
    are not nearest, long before the nearest neighbour changes.

    Args:
        model, queries, gallery: see :func:`map_objective`.
    """
    matches = Matches.of(queries, gallery)

    @torch.no_grad()
    def objective(images: Tensor) -> Tensor:
        order = ranking(model(images), queries, gallery, len(gallery.labels))
        place = torch.arange(2, order.shape[1] + 2, device=order.device).log2()
        hit = matches.right.gather(1, order)
        return (hit * place).sum(1) / hit.sum(1)

    return objective
