"""`dml.perturb`: adversarial images for any retrieval model, for example inside a training loop of one's own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dml.api.attack import BALLS, BLACK_BOX, LINF_ONLY, Norm, l2_radius
from dml.api.checks import called, check_finite, check_module, check_shape
from dml.api.embedding import Embedding, lent
from dml.api.full_precision import full_precision
from dml.api.similarity import Unit
from dml.api.wrap import as_module
from dml.attacks import ATTACKS
from dml.attacks.base import Attack
from dml.common.arguments import record
from dml.common.checks import known, linf_radius
from dml.common.randomness import torch_generator
from dml.common.table import find
from dml.config.load import fractions
from dml.data.base import Split
from dml.evaluation.engine import Worst
from dml.models.embedder import device_of
from dml.retrieval.gallery import Gallery, Matches, Queries
from dml.retrieval.index import Search

IMAGES = 4  # dimensions of (B, 3, H, W)


def perturb(
    embed: Callable[[Tensor], Any],
    images: Tensor,
    labels: Tensor,
    *,
    gallery: tuple[Tensor, Tensor] | None = None,
    eps: float | str = 8 / 255,
    norm: Norm = "linf",
    attack: str = "soft_margin",
    seed: int = 0,
    **settings: Any,
) -> Tensor:
    """Perturb queries so that the nearest gallery item by cosine similarity is of another class.

    It is the attack of the suites, on one batch and without their checks, reports and gates: to judge a model, take
    :func:`dml.evaluate`. A query whose nearest item is wrong already comes back as it is, except from an attack on
    MAP@R. Gradients and similarities are computed without autocast and TF32. With its default settings the attack takes
    100 steps, and 10 more towards each of 12 classes, on queries that do not break before.

    Args:
        embed: see :func:`dml.evaluate`. A module is put into evaluation mode for the duration; its weights and their
            ``.grad`` stay as they are. The attack runs where its weights are, a function's where the images are.
        images: (B, 3, H, W) in [0, 1], on any device.
        labels: (B,) class of each.
        gallery: what is searched, and its labels (N,): images (N, 3, H, W), or their embeddings (N, D), which save
            time. It must not hold the queries themselves. None searches the other images of the batch.
        eps: radius of the ball, in pixels of [0, 1], as a number or as text such as "8/255".
        norm: of the ball: ``linf``, or ``l2`` of a whole image's perturbation.
        attack: a key of :data:`dml.attacks.ATTACKS`.
        seed: of the random starts; another for each batch, such as the number of the step, varies them.
        settings: of the attack, such as ``steps=20, classes=0`` for 20 steps and no targets.

    Returns:
        (B, 3, H, W) in float32 or float64, detached, on the device of ``images``, within the ball and [0, 1]: the worst
        that the attack found for each query.

    Raises:
        ValueError: an argument cannot be used; one sentence says why.
    """
    known("norm", norm, BALLS)
    if norm != "linf" and attack in LINF_ONLY:
        raise ValueError(f"norm is {norm}; the attack {attack} is for linf alone")
    try:
        radius = float(fractions(eps))
    except (TypeError, ValueError) as error:
        raise ValueError(f"eps is {eps!r}; give a number such as 8/255") from error
    (linf_radius if norm == "linf" else l2_radius)("eps", radius)
    ball = BALLS[norm](radius)
    chosen: Attack = record(find(ATTACKS, attack, "attack"), settings, attack)
    _check(images, labels, "images", "labels")
    if images.ndim != IMAGES:
        raise ValueError("images must be a float tensor (N, 3, H, W) in [0, 1]")
    embed = as_module(embed)
    check_module(embed, [])
    device = device_of(embed) if isinstance(embed, nn.Module) else images.device
    given = images.detach().to(device, torch.promote_types(images.dtype, torch.float32))
    with full_precision(), torch.autocast(device.type, enabled=False), lent(embed, device), torch.enable_grad():
        embedding = Embedding(embed, device)
        check_shape(called(embedding, some := given[:2]), len(some))
        model = Unit(embedding)
        if attack not in BLACK_BOX and not _differentiable(model, given[:1].clone()):
            raise ValueError(f"embed gives no gradients; take an attack that needs none: {', '.join(BLACK_BOX)}")
        search, queries = _search(model, given.detach(), labels.to(device, torch.int64), gallery)
        worst = Worst(search, given, queries, chosen.lowers)
        runs = chosen.runs(search)
        if not runs:
            raise ValueError(f"the attack {attack} needs three classes or more; there are two")
        for number, run in enumerate(runs):
            worst.advance(run, ball, torch_generator(seed, "perturb", number))
    return worst.images.to(images.device)


def _differentiable(model: Unit, image: Tensor) -> bool:
    """Whether embeddings have a gradient that reaches the image; that of weights is none."""
    embedding = model(image.requires_grad_(True))
    if not embedding.requires_grad:
        return False
    return torch.autograd.grad(embedding.sum(), image, allow_unused=True)[0] is not None


def _check(images: Tensor, labels: Tensor, name: str, names: str) -> None:
    """Raise ValueError unless there is a label for each image or embedding."""
    if not (isinstance(images, Tensor) and images.ndim in {2, IMAGES} and images.is_floating_point() and len(images)):
        raise ValueError(f"{name} must be a float tensor (N, 3, H, W) in [0, 1]")
    if images.ndim == IMAGES and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"{name} lie between {images.min():.3g} and {images.max():.3g}; they must lie in [0, 1]")
    if not isinstance(labels, Tensor) or labels.shape != images.shape[:1] or labels.is_floating_point():
        raise ValueError(f"{names} must be a tensor of {len(images)} whole numbers, one for each of {name}")


@torch.no_grad()
def _search(
    model: Unit, images: Tensor, labels: Tensor, gallery: tuple[Tensor, Tensor] | None
) -> tuple[Search, Queries]:
    """Return the search, and the batch as queries to it."""
    natural = model(images)
    check_finite(natural, "embeddings")
    if gallery is None:
        own = torch.arange(len(images), device=images.device)
        searched, queries = Gallery(natural, labels), Queries(labels, own, own)
    else:
        if not isinstance(gallery, tuple | list) or len(gallery) != 2:
            raise ValueError("gallery must be a pair: images or embeddings, and their labels")
        items, names = gallery
        _check(items, names, "the gallery's items", "the gallery's labels")
        width = natural.shape[1]
        if items.ndim != IMAGES and items.shape[1] != width:
            raise ValueError(f"the gallery's embeddings have {items.shape[1]} dimensions; embed gives {width}")
        items = items.to(natural) if items.ndim != IMAGES else items.to(images)
        found = F.normalize(items, dim=1) if items.ndim != IMAGES else model(items)
        check_finite(found, "embeddings of the gallery")
        none = torch.full_like(labels, -1)
        searched, queries = Gallery(found, names.to(labels)), Queries(labels, none, none)
    right, wrong, _ = Matches.of(queries, searched)
    alone = labels[~(right.any(1) & wrong.any(1))]
    if len(alone):
        where = "the batch, beside itself" if gallery is None else "the gallery"
        raise ValueError(f"a query of class {int(alone[0])} needs items of its class and of another in {where}")
    split = Split(np.empty((0, 1, 1, 3), np.uint8), np.empty(0, np.int64), [])  # attacks look at the gallery alone
    return Search(model, split, searched, split), queries
