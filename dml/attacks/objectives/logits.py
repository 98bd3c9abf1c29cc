"""The exact bridge to attacks on classifiers: class logits of the 1-NN search, and two losses on them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dml.attacks.objectives.base import FOOLS, TEMPERATURE, Objective
from dml.retrieval.gallery import Gallery, Matches, Queries


def class_logits(embeddings: Tensor, queries: Queries, gallery: Gallery) -> tuple[Tensor, Tensor]:
    """Return the similarity (B, C) to the nearest item of each class.

    The class with the largest logit is that of the nearest neighbour. A classifier's accuracy on these logits is
    therefore R@1, and any attack on classifiers is one on retrieval. Classes come in ascending order. A class has
    logit minus infinity where the search ignores all of its items.

    Args:
        embeddings: (B, D) of the queries.
        queries, gallery: what is searched for, and where.

    Returns:
        Logits (B, C) and the column (B,) of each query's own class.

    Raises:
        ValueError: a query's class is not in the gallery.
    """
    classes, column = gallery.labels.unique(return_inverse=True)
    own = torch.searchsorted(classes, queries.labels).clamp_max(len(classes) - 1)
    if bool((classes[own] != queries.labels).any()):
        raise ValueError("the gallery holds no item of a query's class")
    similarity = embeddings @ gallery.embeddings.T
    similarity = similarity.masked_fill(Matches.of(queries, gallery).ignored, -torch.inf)
    logits = similarity.new_full((len(queries), len(classes)), -torch.inf)
    return logits.scatter_reduce(1, column.expand_as(similarity), similarity, "amax"), own


def cross_entropy_objective(model: nn.Module, queries: Queries, gallery: Gallery) -> Objective:
    """Return the cross-entropy of the 1-NN logits: away from the own class, towards every other class at once.

    A higher cross-entropy does not make the nearest neighbour a wrong one. ``FOOLS`` is added where it is wrong, so
    that an optimiser which keeps the best point does not lose one that fools.
    """

    def objective(images: Tensor) -> Tensor:
        logits, own = class_logits(model(images), queries, gallery)
        right = logits.gather(1, own[:, None]).squeeze(1)
        fooled = logits.scatter(1, own[:, None], -torch.inf).amax(1) >= right
        return F.cross_entropy(logits / TEMPERATURE, own, reduction="none") + FOOLS * fooled

    return objective


def dlr_objective(model: nn.Module, queries: Queries, gallery: Gallery) -> Objective:
    """Return the difference of logits ratio: the margin over the gap between the first and the third class.

    It does not change when all similarities are scaled, so a model cannot hide behind tiny ones (Croce and Hein 2020,
    equation 6).

    Raises:
        ValueError: the gallery holds fewer than three classes.
    """
    if len(gallery.labels.unique()) < 3:
        raise ValueError("the difference of logits ratio needs a gallery of three classes or more")

    def objective(images: Tensor) -> Tensor:
        logits, own = class_logits(model(images), queries, gallery)
        top = logits.topk(3, dim=1).values
        right = logits.gather(1, own[:, None]).squeeze(1)
        wrong = logits.scatter(1, own[:, None], -torch.inf).amax(1)
        return (wrong - right) / (top[:, 0] - top[:, 2] + 1e-12)

    return objective
