"""The softened 1-NN margin: all items count, the nearest most."""

import torch
from torch import Tensor, nn

from dml.attacks.objectives.base import FOOLS, Objective
from dml.retrieval.gallery import Gallery, Matches, Queries

SOFTNESS = 0.015  # standard deviations of a query's similarities to all items; 0.06 left more queries


def softness_of(embeddings: Tensor, gallery: Gallery) -> Tensor:
    """Return (B,): how far apart similarities are that count as nearly equal, given embeddings (B, D) of queries."""
    spread = (embeddings @ gallery.embeddings.T).std(1)
    return SOFTNESS * spread.clamp_min(torch.finfo(spread.dtype).tiny ** 0.5)


def soft_margin_objective(
    model: nn.Module, queries: Queries, gallery: Gallery, softness: Tensor, target: Tensor | None = None
) -> Objective:
    """Return softness * (log sum exp(s / softness) over wrong items - that over right items), of similarities s.

    The gradient of the 1-NN margin sees two items. This one sees all that are nearly as near, so that it does not leave
    one right item behind while another takes over. ``FOOLS`` is added where the nearest item is wrong, so that an
    optimiser which keeps the best point does not lose one that fools.

    Args:
        model: images (B, 3, H, W) -> unit embeddings (B, D).
        queries: of the B images.
        gallery: that is searched.
        softness: (B,), see :func:`softness_of`.
        target: (B,) label of the one wrong class whose items count; None for all.
    """
    right, wrong, _ = Matches.of(queries, gallery)
    wanted = wrong if target is None else wrong & (target[:, None] == gallery.labels)

    def objective(images: Tensor) -> Tensor:
        similarity = model(images) @ gallery.embeddings.T
        goal, own, other = (similarity.masked_fill(~mask, -torch.inf) for mask in (wanted, right, wrong))
        ahead, behind = (softness * (part / softness[:, None]).logsumexp(1) for part in (goal, own))
        return ahead - behind + FOOLS * (other.amax(1) >= own.amax(1)).detach()

    return objective
