"""What people get wrong when they evaluate a model, found before the attack and answered in one sentence each."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dml.api.embedding import Embedding, bounded
from dml.api.wrap import Wrapped
from dml.common.randomness import torch_generator
from dml.data.base import Split
from dml.data.sampling import evenly
from dml.data.transforms import to_float
from dml.retrieval.index import Search
from dml.retrieval.metrics import ranking

LOOKED_AT = 8  # images
MANY = 64  # images in a larger batch, where embeddings must be the same, and those compared with their copies at a time
ALIKE = 2 / 255  # mean difference between the pixels of an image and a copy that was recompressed or resized
FAINT = 0.1  # that of a copy is also at most this share of the image's own mean deviation: dark images are all alike
REPEATS = 1e-3  # relative change of an embedding between two calls that rounding could explain


def check_module(given: Any, notes: list[str]) -> None:
    """Note a module in training mode, one whose normalisation was left outside, or whose weights were not all read.

    Args:
        given: the module or function.
        notes: receive one sentence for each.

    Raises:
        ValueError: it cannot be called, inference mode is on, or new tensors go to a GPU by default.
    """
    if torch.get_default_device().type != "cpu":
        raise ValueError(
            f"new tensors go to {torch.get_default_device()} by default, where random numbers would differ; call "
            'torch.set_default_device("cpu") and put model and images there yourself'
        )
    if torch.is_inference_mode_enabled():
        raise ValueError("torch.inference_mode() is on, which forbids gradients; switch it off")
    if not callable(given):
        raise ValueError(f"embed is a {type(given).__name__}; give a module or a function from images to embeddings")
    if not isinstance(given, nn.Module):
        return
    if any(module.training for module in given.modules()):
        notes.append("the model is in training mode; it is evaluated in evaluation mode, and put back afterwards")
    if isinstance(given, Wrapped):
        notes += given.notes
    config = next(filter(None, map(_trained_with, given.modules())), None)
    if config and not _normalises(given):
        what = "this timm model" if _trained_with(given) else "the timm model inside"
        notes.append(
            f"{what} was trained on normalised images; unless they are normalised inside the model, give "
            f"dml.wrap(model, mean={tuple(config['mean'])}, std={tuple(config['std'])})"
        )
    inside = type(given.module if isinstance(given, Wrapped) else given).__module__
    if inside.startswith("torchvision.models.") and not _normalises(given):
        notes.append(
            "torchvision trains its models on normalised images; unless yours was trained on others, give "
            "dml.wrap(model, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))"
        )


def _trained_with(module: nn.Module) -> dict[str, Any] | None:
    """Mean and deviation that timm says a model was trained with, if it is one of timm's."""
    config = getattr(module, "pretrained_cfg", None)
    return config if isinstance(config, dict) and {"mean", "std"} <= config.keys() else None


def _normalises(given: nn.Module) -> bool:
    return isinstance(given, Wrapped) and not (bool((given.mean == 0).all()) and bool((given.std == 1).all()))


def check_embedding(embedding: Embedding, split: Split, notes: list[str]) -> bool:
    """Try a few images, and return whether the model gives gradients that an attack can follow.

    Args:
        embedding: of the model.
        split: the images to take them from.
        notes: receive a sentence on half precision, on equal embeddings and on missing gradients.

    Raises:
        ValueError: embeddings have a wrong shape, are not numbers, or change between two calls.
    """
    many = to_float(split.images[evenly(MANY, len(split))], embedding.place.device)
    some = evenly(LOOKED_AT, len(many))
    images = many[some]
    first = check_calls(embedding, images)
    check_shape(called(embedding, images[:1]), 1)  # the last images may come alone
    if embedding.half is not None:
        notes.append(
            f"the model computes in {embedding.half}; its gradients are coarse, so evaluate it in full precision"
        )
    if len(first) > 1 and bool((first == first[0]).all()):
        notes.append("the model embeds all of the first images alike; does it expect images in [0, 1]?")
    with bounded(embedding, len(images)):
        has_gradient = _has_gradient(embedding, images, notes)
    whole = called(embedding, many)
    check_shape(whole, len(many))
    _check_same(first, whole[some], embedding, "with the size of the batch")
    return has_gradient


def check_calls(embedding: Embedding, images: Tensor) -> Tensor:
    """Return embeddings of a few images.

    Raises:
        ValueError: they have a wrong shape, are not numbers, or change between two calls.
    """
    first = called(embedding, images)
    check_shape(first, len(images))
    check_finite(first, "embeddings")
    half = len(images) // 2  # another batch as well as another call: batch statistics show, too
    parts = torch.cat([called(embedding, part) for part in (images[:half], images[half:]) if len(part)])
    _check_same(first, parts, embedding, "between two calls")
    return first


def _check_same(first: Tensor, again: Tensor, embedding: Embedding, when: str) -> None:
    change = float((again - first).abs().max() / first.abs().max().clamp_min(1e-30))
    if not change <= (REPEATS if embedding.half is None else 30 * REPEATS):
        raise ValueError(
            f"embeddings of the same images change {when}, by {change:.1%}; switch off dropout, batch statistics and "
            "random changes inside embed (module.eval())"
        )


def check_shape(embeddings: Tensor, count: int) -> None:
    """Raise ValueError unless there is one embedding (D,) for each of some images."""
    if embeddings.ndim != 2 or len(embeddings) != count or not embeddings.shape[1]:
        raise ValueError(f"embed gives shape {tuple(embeddings.shape)} for {count} images; it must be (B, D)")


@torch.no_grad()
def called(embedding: Embedding, images: Tensor) -> Tensor:
    """Return embeddings of images (B, 3, H, W); raise ValueError with what the model says where it fails."""
    try:
        return embedding(images)
    except Exception as error:  # whatever the model does
        raise ValueError(
            f"embed fails on {len(images)} images {tuple(images.shape[1:])} in [0, 1] on {images.device}: "
            f"{_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_finite(embeddings: Tensor, what: str) -> None:
    """Raise ValueError if embeddings (B, D) hold values that are not finite."""
    bad = int((~embeddings.isfinite()).any(1).sum())
    if bad:
        raise ValueError(f"{bad} of {len(embeddings)} {what} hold NaN or infinity; the model must give numbers")


def _has_gradient(embedding: Embedding, images: Tensor, notes: list[str]) -> bool:
    black_box = "is attacked by its outputs alone, which is weaker than an attack with gradients"
    images = images.clone().requires_grad_(True)
    try:
        with torch.enable_grad():
            found = embedding(images)
            gradient = None
            if found.requires_grad:
                (gradient,) = torch.autograd.grad(along(found).sum(), images, allow_unused=True)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{len(images)} images with gradients do not fit on {images.device}; free its memory"
        ) from error
    except Exception as error:  # whatever the model does
        notes.append(f"embed fails where gradients are wanted ({_first_line(error)}); it {black_box}")
        return False
    if not found.requires_grad:
        notes.append(f"embed gives no gradients; it {black_box}")
        return False
    if gradient is None:
        notes.append(f"the model's gradient does not reach the images; it {black_box}")
        return False
    flat = (gradient.nan_to_num(0).flatten(1) == 0).all(1)  # the attacks take what is not a number for 0
    if bool(flat.all()):
        notes.append(f"the model's gradient is zero or not a number for every image looked at; it {black_box}")
        return False
    if bool(flat.any()):
        notes.append(
            f"the model's gradient is zero or not a number for {int(flat.sum())} of {len(flat)} images looked at; "
            "R@1 left may be too high"
        )
    return True


def along(embeddings: Tensor) -> Tensor:
    """Return each embedding's part (B,) along a random direction, always the same: its gradient is not 0."""
    direction = torch.randn(embeddings.shape, generator=torch_generator(0, "a direction to look in"))
    return (embeddings * direction.to(embeddings)).sum(1)


def signs_like(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random direction of -1 and 1 for each pixel of images (B, 3, H, W)."""
    return torch.randint(0, 2, images.shape, generator=generator).to(images) * 2 - 1


def answerable(split: Split, queries: Split | None, notes: list[str]) -> np.ndarray:
    """Return the numbers of the queries for which the gallery holds a right and a wrong item that are not ignored.

    A query without a wrong item would survive any attack.

    Args:
        split: the gallery.
        queries: apart from it, or None.
        notes: receive how many queries are left out.

    Raises:
        ValueError: no query is left.
    """
    asked = split if queries is None else queries
    if not len(split) or not len(asked):
        raise ValueError("there are no images" if queries is None else "there are no queries, or the gallery is empty")
    if len(np.unique(np.concatenate([split.labels, asked.labels]))) < 2:
        raise ValueError("all images are of one class; retrieval needs two or more")
    count = len(split.class_names)
    right = np.bincount(split.labels, minlength=count)[asked.labels]
    wrong = len(split) - right
    if split.groups is not None:
        ignored = _same_group(asked, split)
        right = right - ignored
        wrong = wrong - (_counts(asked.groups, split.groups) - ignored)
    elif queries is None:
        right = right - 1
    lost = int((right == 0).sum())
    if lost == len(asked):
        raise ValueError("no query has another image of its class in the gallery; check the labels and groups")
    if lost:
        why = (
            "have no image of their class in the gallery"
            if queries is not None
            else "are the only ones of their class" + ("" if split.groups is None else " outside their group")
        )
        where = "" if queries is not None else ", but stay in the gallery"
        notes.append(f"{lost} of {len(asked)} images {why}; they are not used as queries{where}")
    sure = int(((right > 0) & (wrong == 0)).sum())
    if sure + lost == len(asked):
        raise ValueError("the gallery holds no image of another class for any query; no attack could break one")
    if sure:
        notes.append(f"{sure} of {len(asked)} images have no wrong answer in the gallery; they are not used as queries")
    return np.flatnonzero((right > 0) & (wrong > 0))


def copies(search: Search, rows: np.ndarray) -> str | None:
    """Say for how many queries the nearest item is a copy of the image, of its class; None if for none.

    Args:
        search: of the model.
        rows: numbers of the queries.
    """
    queries = search.queries(rows)
    nearest = ranking(search.query_embeddings[torch.from_numpy(rows)], queries, search.gallery, 1)[:, 0].cpu().numpy()
    same = 0
    for first in range(0, len(rows), MANY):
        part = slice(first, first + MANY)
        asked, found = to_float(search.query_split.images[rows[part]]), to_float(search.split.images[nearest[part]])
        deviation = (asked - asked.mean((2, 3), keepdim=True)).abs().flatten(1).mean(1)
        alike = (asked - found).abs().flatten(1).mean(1) <= (FAINT * deviation).clamp_max(ALIKE)
        answers = search.query_split.labels[rows[part]] == search.split.labels[nearest[part]]
        same += int((alike.numpy() & answers).sum())
    if not same:
        return None
    return (
        f"{same} of {len(rows)} queries have a copy in the gallery, which answers them; leave it out, or give it the "
        "query's group"
    )


def _same_group(asked: Split, split: Split) -> np.ndarray:
    """(Q,) gallery items of each query's class and group."""
    base = int(max(asked.groups.max(), split.groups.max())) + 1
    return _counts(asked.labels * base + asked.groups, split.labels * base + split.groups)


def _counts(wanted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(Q,) how many of some values equal each wanted one."""
    found, counts = np.unique(values, return_counts=True)
    place = np.searchsorted(found, wanted).clip(max=len(found) - 1)
    return np.where(found[place] == wanted, counts[place], 0)
