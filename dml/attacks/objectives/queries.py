"""What attacks on R@1 and MAP@R maximise: functions that close over the model, the gallery and the queries.

Each returns an objective, pictures (B, 3, H, W) -> (B,), higher being worse for the defender. Where items of the
gallery are chosen, they are chosen anew at every call and over the whole gallery, unless the function says otherwise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dml.attacks.optimisers.pgd import Objective
from dml.losses import distance
from dml.retrieval.index import Gallery, Matches, Queries, advantage, per_query, ranking

TEMPERATURE = 0.1  # similarities are divided by it before a softmax: inner products in [-1, 1] alone make it flat
FOOLS = 1e3  # added to a value that alone does not tell whether the search is fooled, where it is
RANK_WIDTH = 0.01  # difference of similarity over which the soft rank changes by most of one place


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


def class_logits(embeddings: Tensor, queries: Queries, gallery: Gallery) -> tuple[Tensor, Tensor]:
    """The exact bridge to classifier attacks: similarity (B, C) to the nearest item of each class.

    The class with the largest logit is that of the nearest neighbour, so a classifier's accuracy on these logits is
    R@1, and any attack on classifiers is one on retrieval. Classes come in ascending order; one that holds nothing
    but the query itself has logit minus infinity.

    Returns:
        logits (B, C) and the column (B,) of each query's own class.

    Raises:
        ValueError: a query's class is not in the gallery.
    """
    classes, column = gallery.labels.unique(return_inverse=True)
    own = torch.searchsorted(classes, queries.labels).clamp_max(len(classes) - 1)
    if bool((classes[own] != queries.labels).any()):
        raise ValueError("the gallery holds no item of a query's class")
    similarity = embeddings @ gallery.embeddings.T
    similarity = similarity.masked_fill(Matches.of(queries, gallery).own, -torch.inf)
    logits = similarity.new_full((len(queries), len(classes)), -torch.inf)
    return logits.scatter_reduce(1, column.expand_as(similarity), similarity, "amax"), own


def cross_entropy_objective(model: nn.Module, queries: Queries, gallery: Gallery) -> Objective:
    """Cross-entropy of the 1-NN logits: away from the own class, towards every other at once.

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
    """Difference of logits ratio (Croce and Hein 2020, equation 6): the margin over the gap of first to third class.

    It does not change when all similarities are scaled, so a model cannot hide behind tiny ones.

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


def map_objective(model: nn.Module, queries: Queries, gallery: Gallery) -> Objective:
    """Minus the average precision at R, with the gradient of its soft form.

    Ranks become sums of sigmoids of similarity differences (Smooth-AP, Brown et al. 2020), and the soft form runs over
    all right items, where the exact one is cut at the first R places. The value is the exact one, so that an optimiser
    which keeps the best point keeps the one with the lowest average precision. Of the wrong items only the R nearest
    enter: no other can take one of the first R places.
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
    """What an attacker can see who is shown the ranking and no similarity: the mean log2 rank of the right items.

    It is piecewise constant and has no gradient: for attacks that need none. It sees where right items that are
    not nearest move, long before the nearest neighbour changes.
    """
    matches = Matches.of(queries, gallery)

    @torch.no_grad()
    def objective(images: Tensor) -> Tensor:
        order = ranking(model(images), queries, gallery, len(gallery.labels))
        place = torch.arange(2, order.shape[1] + 2, device=order.device).log2()
        hit = matches.right.gather(1, order)
        return (hit * place).sum(1) / hit.sum(1)

    return objective


def embedding_shift_objective(model: nn.Module, images: Tensor) -> Objective:
    """Distance from where the natural picture is embedded: weak, since a long way may lead past no wrong item.

    Its gradient is zero at the picture itself; without a random start nothing moves.
    """
    with torch.no_grad():
        home = model(images)
    return lambda pictures: distance(model(pictures), home)


def metric_loss_objective(model: nn.Module, images: Tensor, queries: Queries, gallery: Gallery) -> Objective:
    """The training loss of the query's own tuple, the query being the anchor (arXiv 2102.07265): d(a~, p) - d(a~, n).

    Positive and negative are the nearest right and wrong item of the natural picture, and stay what they are. The
    hinge is left out: its gradient vanishes where the tuple costs nothing.
    """
    with torch.no_grad():
        matches = Matches.of(queries, gallery)
        similarity = model(images) @ gallery.embeddings.T
        positive, negative = (
            gallery.embeddings[similarity.masked_fill(~mask, -torch.inf).argmax(1)]
            for mask in (matches.right, matches.wrong)
        )

    def objective(pictures: Tensor) -> Tensor:
        embeddings = model(pictures)
        return distance(embeddings, positive) - distance(embeddings, negative)

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
