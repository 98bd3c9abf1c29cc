"""Images and labels as people have them: tensors, arrays, datasets, folders."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageOps
from torch import Tensor

from dml.api.pixels import Lazy, check_side, stored, to_pixels
from dml.data import base
from dml.data.base import Dataset, Source, Split
from dml.data.sampling import evenly
from dml.data.sources.folder import read_folder

Prepare = Callable[[Any], Any]
"""An image of a folder or a dataset -> an image (3, H, W) in [0, 1], or a PIL image."""

HELD_OUT = 0.2  # of training classes, to choose by, as the recipes of params.yaml hold out
KEPT = 2**30  # bytes of decoded images that are held in memory; more are decoded whenever they are asked for
LOOKED_AT = 8  # images of a dataset read twice, to see whether its transform is random
LARGEST = 4096  # pixels: a file is decoded at reduced size down to about this side


class Loaded(NamedTuple):
    """Images with what is known of them.

    Attributes:
        pixels: (N, H, W, 3) uint8, or float32 from 0 to 255.
        labels: (N,) of any kind.
        groups: (N,), or None.
        queries: (N,) bool, or None.
    """

    pixels: np.ndarray | Lazy
    labels: np.ndarray
    groups: np.ndarray | None = None
    queries: np.ndarray | None = None


def splits(
    images: Any,
    labels: Any,
    queries: Any,
    gallery: Any,
    groups: Any,
    *,
    size: int | None = None,
    transform: Prepare | None = None,
) -> tuple[Split, Split | None]:
    """Return the gallery and the queries; None where each image of the gallery is a query to all others.

    Args:
        images, labels: of a set that is both; labels come with a folder or a dataset. Of a folder that
            :func:`dml.data.prepare.prepare` wrote, the test classes are taken.
        queries, gallery: pairs of images and labels, or folders or datasets, instead.
        groups: (N,) of the images, or a pair for queries and gallery.
        size: side of a central square that images of a folder or a dataset are cut to.
        transform: applied to them instead.

    Raises:
        ValueError: an argument is missing or wrong; one sentence says what would be right.
    """
    if (queries is None) != (gallery is None) or (images is None) == (gallery is None):
        raise ValueError("give images and labels, or else queries=(images, labels) and gallery=(images, labels)")
    prepare = _prepare(size, transform)
    if _is_prepared(images):
        if not (labels is None and groups is None and prepare is None):
            raise ValueError(f"{images} is prepared, with labels, groups and size; leave these arguments out")
        prepared = base.load(Path(images))
        return prepared.test, prepared.queries
    if gallery is None:
        loaded = load(images, labels, prepare)
        own = loaded.groups if groups is None else _checked_groups(groups, len(loaded.labels))
        if loaded.queries is None:
            values, names = _numbered([loaded.labels])
            return Split(loaded.pixels, values[0], names, _grouped([own], values)[0]), None
        asked = np.flatnonzero(loaded.queries), np.flatnonzero(~loaded.queries)
        parts = [Loaded(_taken(loaded.pixels, rows), loaded.labels[rows]) for rows in asked]
        given = [None if own is None else own[rows] for rows in asked]
    else:
        if labels is not None:
            raise ValueError("labels goes with images; write queries=(images, labels) and gallery=(images, labels)")
        parts = [load(*(pair if _is_pair(pair) else (pair, None)), prepare) for pair in (queries, gallery)]
        given = [part.groups for part in parts]
        if groups is not None:
            if not _is_pair(groups):
                raise ValueError("groups must be a pair, of the queries and of the gallery, numbered alike")
            given = [_checked_groups(item, len(part.labels)) for item, part in zip(groups, parts, strict=True)]
        if (given[0] is None) != (given[1] is None):
            raise ValueError("groups must be given for both the queries and the gallery, or for neither")
    shapes = [part.pixels.shape[1:3] for part in parts]
    if shapes[0] != shapes[1]:
        raise ValueError(f"queries have {shapes[0]} pixels and the gallery {shapes[1]}; bring them to one size")
    values, names = _numbered([part.labels for part in parts])
    numbers = _grouped(given, values)
    query, items = (
        Split(part.pixels, value, names, number) for part, value, number in zip(parts, values, numbers, strict=True)
    )
    return items, query


def training_data(
    training: Any, images: Any, *, size: int | None = None, transform: Prepare | None = None
) -> Dataset | None:
    """Return images that a control may be fitted to, and held-out classes to choose by; None if there are none.

    Args:
        training: a pair of images and labels, or a dataset or folder; the last fifth of its classes is held out. Of a
            folder that :func:`dml.data.prepare.prepare` wrote, the training classes are taken, as it divided them.
        images: that are attacked. If training is None and they are such a folder, its training classes are taken.
        size, transform: see :func:`splits`; a prepared folder has its size.

    Returns:
        A dataset whose ``train`` and ``validation`` alone are what their names say.

    Raises:
        ValueError: there are fewer than four classes, or another argument is wrong.
    """
    given = images if training is None else training
    if _is_prepared(given):
        return base.load(Path(given))
    if training is None:
        return None
    found = load(*(training if _is_pair(training) else (training, None)), _prepare(size, transform))
    (labels,), names = _numbered([found.labels])
    held_out = max(2, round(len(names) * HELD_OUT))
    if len(names) < held_out + 2:
        raise ValueError(f"training has {len(names)} classes; a control takes two to fit and two to choose by")
    (groups,) = _grouped([found.groups], [labels])
    is_held_out = labels >= len(names) - held_out
    train, validation = (
        Split(_taken(found.pixels, rows), labels[rows], names, None if groups is None else groups[rows])
        for rows in (np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out))
    )
    return Dataset(train, validation, test=validation)


def _is_prepared(images: Any) -> bool:
    return isinstance(images, str | Path) and (Path(images) / "images.bin").exists()


def _is_pair(value: Any) -> bool:
    """Whether a value is (images, labels), and not a list of two such items."""
    return isinstance(value, tuple | list) and len(value) == 2 and not isinstance(value[0], tuple)


def _taken(pixels: np.ndarray | Lazy, rows: np.ndarray) -> np.ndarray | Lazy:
    if isinstance(pixels, Lazy):
        return Lazy(lambda row: pixels.read(int(rows[row])), (len(rows), *pixels.shape[1:]), pixels.threads)
    return pixels[rows]


def _numbered(labels: list[np.ndarray]) -> tuple[list[np.ndarray], list[str]]:
    """Labels counted from 0 over all sets, and their names."""
    whole = np.concatenate(labels)
    if pd.isna(whole).any():
        raise ValueError("labels has a missing value; give every image a class, or leave it out")
    try:
        names, numbers = np.unique(whole, return_inverse=True)
    except TypeError as error:  # they have no order
        kinds = " and ".join(sorted({type(label).__name__ for label in whole.tolist()}))
        raise ValueError(f"labels hold {kinds}; give every image a number, or every image a name") from error
    ends = np.cumsum([len(part) for part in labels])[:-1]
    return np.split(numbers.astype(np.int64), ends), [str(name) for name in names]


def _grouped(groups: list[np.ndarray | None], labels: list[np.ndarray]) -> list[np.ndarray | None]:
    """Groups counted from 0 over all sets. Images of several classes are in several groups: a camera sees many."""
    if groups[0] is None:
        return groups
    numbers = pd.factorize(np.concatenate(groups))[0].astype(np.int64)
    if (numbers < 0).any():
        raise ValueError("groups has a missing value; give an image without a group a value of its own")
    pairs = np.stack([np.concatenate(labels), numbers], axis=1)
    joined = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return list(np.split(joined, np.cumsum([len(part) for part in groups])[:-1]))


def _checked_groups(groups: Any, count: int) -> np.ndarray:
    found = _flat(groups, "groups")
    if len(found) != count:
        raise ValueError(f"there are {len(found)} groups for {count} images; give one per image")
    return found


def _flat(values: Any, name: str) -> np.ndarray:
    found = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    if found.ndim != 1:
        raise ValueError(f"{name} has shape {found.shape}; it must hold one value per image")
    return found


def load(images: Any, labels: Any, prepare: Prepare | None = None) -> Loaded:
    """Return images of any kind with their labels.

    Args:
        images: a float tensor or array (N, 3, H, W) in [0, 1]; a uint8 one, also as (N, H, W, 3); a dataset of pairs;
            or a folder as :func:`dml.data.sources.folder.read_folder` takes it.
        labels: (N,) of any kind; None for those of the dataset or the folder.
        prepare: applied to every image of a dataset or a folder.

    Raises:
        ValueError: images or labels cannot be used; one sentence says what would be right.
    """
    if isinstance(images, str | Path):
        found = _folder(read_folder(Path(images)), prepare)
    elif isinstance(images, Tensor | np.ndarray):
        if prepare is not None:
            raise ValueError("size and transform are for folders and datasets; resize a tensor or an array beforehand")
        if labels is None:
            raise ValueError("labels is missing; give one label per image")
        found = Loaded(stored(images), _flat(labels, "labels"))
    elif hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        found = _dataset(images, labels, prepare)
    else:
        raise ValueError(f"images is a {type(images).__name__}; give a tensor, an array, a dataset or a folder")
    if labels is not None:
        found = found._replace(labels=_flat(labels, "labels"))
    if len(found.labels) != len(found.pixels):
        raise ValueError(f"there are {len(found.labels)} labels for {len(found.pixels)} images; give one per image")
    return found


def _prepare(size: int | None, transform: Prepare | None) -> Prepare | None:
    check_side(size)
    if size is None:
        return transform
    if transform is not None:
        raise ValueError("give size or transform, not both")
    return partial(_square, size)


def _square(size: int, image: Any) -> Image.Image:
    if not isinstance(image, Image.Image):
        raise ValueError(f"size is for PIL images; the dataset gives {type(image).__name__}, resize in its transform")
    return ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)


def _folder(source: Source, prepare: Prepare | None) -> Loaded:
    def read(row: int) -> np.ndarray:
        ((_, make),) = source.tasks(np.array([row]))
        image = make(LARGEST)
        return to_pixels(prepare(image) if prepare else image)

    names = np.array(source.class_names)
    labels = names[source.labels] if len(set(names)) == len(names) else source.labels
    return Loaded(_lazy(read, len(source.labels), threads=True), labels, source.groups, source.queries)


def _dataset(images: Any, labels: Any, prepare: Prepare | None) -> Loaded:
    if not len(images):
        raise ValueError("the dataset is empty; give one with images")

    def read(row: int) -> np.ndarray:
        item = images[row]
        image = item[0] if isinstance(item, tuple | list) else item
        return to_pixels(prepare(image) if prepare else image)

    pixels = _lazy(read, len(images))
    if labels is None:
        labels = _targets(images)
    if labels is None:
        if not isinstance(images[0], tuple | list):
            raise ValueError("the dataset gives images without labels; give labels, one per image")
        labels = [images[row][1] for row in range(len(images))]  # decodes every image once more
    return Loaded(pixels, _flat(labels, "labels"))


def _targets(images: Any) -> Any:
    """Labels that a dataset holds beside its images, if its items have the same; None otherwise."""
    held = getattr(images, "targets", None)
    if held is None or len(held) != len(images):
        return None
    rows = evenly(LOOKED_AT, len(images)).tolist()
    items = [images[row] for row in rows]
    same = all(isinstance(item, tuple | list) and item[1] == held[row] for row, item in zip(rows, items, strict=True))
    return held if same else None


def _lazy(read: Callable[[int], np.ndarray], count: int, threads: bool = False) -> np.ndarray | Lazy:
    first = read(0)
    if not all(np.array_equal(read(row), read(row)) for row in evenly(LOOKED_AT, count).tolist()):
        raise ValueError("the transform gives another image each time; use the one for evaluation, without randomness")
    images = Lazy(read, (count, *first.shape), threads)
    return images[:] if count * first.nbytes <= KEPT else images
