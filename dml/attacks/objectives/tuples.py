"""Objectives on tuples and on embeddings alone: those of training, and weak ones that many papers evaluate with."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dml.attacks.objectives.base import Objective
from dml.common.checks import known
from dml.losses.base import difference, distance
from dml.retrieval.gallery import Gallery, Matches, Queries

Positive = Literal["nearest", "itself"]


def role_objective(
    model: Callable[[Tensor], Tensor], target: str, anchor: Tensor, positive: Tensor, negative: Tensor
) -> Objective:
    """Return what the perturbation of one role of a tuple maximises; the others keep their embeddings.

    positive: d(p~, a); negative: -d(n~, a); anchor: d(a~, p) - d(a~, n), with Euclidean distances d (arXiv
    2102.07265). The hinge of the loss is left out: its gradient vanishes where a tuple already costs nothing.

    Args:
        model: images (T, 3, H, W) -> embeddings (T, D).
        target: ``positive``, ``negative`` or ``anchor``.
        anchor, positive, negative: (T, D) embeddings; the one of ``target`` is not used.
    """
    objectives: dict[str, Objective] = {
        "positive": lambda images: distance(model(images), anchor),
        "negative": lambda images: -distance(model(images), anchor),
        "anchor": lambda images: difference(model(images), positive, negative),
    }
    return objectives[target]


def embedding_shift_objective(model: nn.Module, images: Tensor) -> Objective:
    """Return the distance from the embedding of the natural images (B, 3, H, W).

    It is weak: a long way may lead past no wrong item. Its gradient is zero at the image itself, so nothing moves
    without a random start.
    """
    with torch.no_grad():
        home = model(images)
    return lambda perturbed: distance(model(perturbed), home)


def metric_loss_objective(
    model: nn.Module, images: Tensor, queries: Queries, gallery: Gallery, positive: Positive = "nearest"
) -> Objective:
    """Return the training loss of the query's own tuple, with the query as anchor: d(a~, p) - d(a~, n).

    Positive and negative are the nearest right and wrong item of the natural image, and do not change. The hinge is
    left out, as in :func:`role_objective`.

    Args:
        model: images -> unit embeddings (B, D).
        images: (B, 3, H, W), natural.
        queries: of the B images.
        gallery: that is searched.
        positive: the ``nearest`` right item, or ``itself``: the query's own natural image, from which the code of arXiv
            2102.07265 moves away, without a negative. The gradient of that distance is 0 at the image itself.
    """
    with torch.no_grad():
        matches, natural = Matches.of(queries, gallery), model(images)
        similarity = natural @ gallery.embeddings.T
        right, wrong = (
            gallery.embeddings[similarity.masked_fill(~mask, -torch.inf).argmax(1)]
            for mask in (matches.right, matches.wrong)
        )
    to = natural if positive == "itself" else right
    return lambda perturbed: difference(model(perturbed), to, wrong)


def check_positive(positive: str) -> None:
    """Raise ValueError if :func:`metric_loss_objective` does not know the positive."""
    known("positive", positive, get_args(Positive))
