"""The 1-NN margin with a softened gradient: all nearly nearest items pull, the nearest most."""

import torch
from torch import Tensor, nn

from dml.attacks.objectives.base import FOOLS, Objective
from dml.retrieval.gallery import Gallery, Matches, Queries

SOFTNESS = 0.3  # times the margin; between 0.1 and 1 it matters little, but a scale fixed for all queries left more


def soft_margin_objective(
    model: nn.Module, queries: Queries, gallery: Gallery, target: Tensor | None = None
) -> Objective:
    """Return the 1-NN margin, with the gradient of T * (log sum exp(s / T) over wrong items - that over right items).

    The gradient of the margin sees two of the similarities s. This one sees all items that are nearly as near, so that
    it does not leave one right item behind while another takes over. What counts as nearly, T, is a share of the
    distance to go, the absolute margin: wide while the query is far from breaking, and exact at the end. It so needs
    no scale of the model's own. ``FOOLS`` is added where the nearest item is wrong, so that an optimiser which keeps
    the best point does not lose one that fools.

    Args:
        model: images (B, 3, H, W) -> unit embeddings (B, D).
        queries: of the B images.
        gallery: that is searched.
        target: (B,) label of the one wrong class whose items count; None for all.
    """
    right, wrong, _ = Matches.of(queries, gallery)
    wanted = wrong if target is None else wrong & (target[:, None] == gallery.labels)

    def objective(images: Tensor) -> Tensor:
        embeddings = model(images)
        with torch.no_grad():
            similarity = embeddings @ gallery.embeddings.T
            own, goal = (similarity.masked_fill(~mask, -torch.inf) for mask in (right, wanted))
            other = goal if target is None else similarity.masked_fill(~wrong, -torch.inf)
            behind = own.amax(1)
            hard, margin = goal.amax(1) - behind, other.amax(1) - behind
            softness = SOFTNESS * margin.abs().clamp(torch.finfo(margin.dtype).tiny ** 0.5, 1)[:, None]
            # The gradient of T log sum exp(s / T) is the average of the items by softmax(s / T): nothing of the size
            # of the gallery goes through autograd.
            pull = ((goal / softness).softmax(1) - (own / softness).softmax(1)) @ gallery.embeddings
            value = hard + FOOLS * (margin >= 0)
        along = (embeddings * pull).sum(1)
        return torch.where(hard.isinf(), value, value + along - along.detach())

    return objective
