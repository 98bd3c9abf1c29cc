"""What is searched and what is asked: images and labels as people have them, numbered alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dml.api.loading import Loaded, Prepare, flat, found_at, has_training_classes, load, prepared_by
from dml.api.pixels import Lazy, Side
from dml.data import base
from dml.data.base import Dataset, Split

HELD_OUT = 0.2  # of training classes, to choose by, as the recipes of params.yaml hold out


@dataclass(frozen=True)
class FileSplit(Split):
    """A split that knows the file of each image.

    Attributes:
        files: (N,) paths in the folder, or None where the images come from none.
    """

    files: np.ndarray | None = None


def splits(
    images: Any,
    labels: Any,
    queries: Any,
    gallery: Any,
    groups: Any,
    *,
    size: Side | None = None,
    transform: Prepare | None = None,
) -> tuple[Split, Split | None]:
    """Return the gallery and the queries; None where each image of the gallery is a query to all others.

    Args:
        images, labels: of a set that is both; labels come with a folder or a dataset. Of a folder that
            :func:`dml.data.prepare.prepare` wrote, or with a column ``train``, the test classes are taken.
        queries, gallery: pairs of images and labels, or folders or datasets, instead.
        groups: (N,) of the images, or a pair for queries and gallery. Those of a folder stand in its labels.csv.
        size: side of a central square that images of a folder or a dataset are cut to, or (height, width) that they
            are resized to.
        transform: applied to them instead.

    Raises:
        ValueError: an argument is missing or wrong; one sentence says what would be right.
    """
    if (queries is None) != (gallery is None) or (images is None) == (gallery is None):
        raise ValueError("give images and labels, or else queries=(images, labels) and gallery=(images, labels)")
    prepare = prepared_by(size, transform)
    if labels is None and _is_pair(images) and hasattr(images[0], "ndim"):
        images, labels = images
    if _is_prepared(queries) or _is_prepared(gallery):
        raise ValueError("a prepared dataset has its own queries and gallery; give it alone, as images")
    if _is_prepared(images):
        if not (labels is None and groups is None and prepare is None):
            raise ValueError(f"{images} is prepared, with labels, groups and size; leave these arguments out")
        prepared = _prepared(images)
        return prepared.test, prepared.queries
    if groups is not None and any(map(_is_folder, (images, queries, gallery))):
        raise ValueError("groups of the images in a folder go into the column group of its labels.csv")
    if gallery is None:
        loaded = load(images, labels, prepare)
        own = loaded.groups if groups is None else _checked_groups(groups, len(loaded.labels))
        if loaded.queries is None:
            values, names = _numbered([loaded.labels])
            return FileSplit(loaded.pixels, values[0], names, _grouped([own], values)[0], loaded.files), None
        asked = np.flatnonzero(loaded.queries), np.flatnonzero(~loaded.queries)
        parts = [
            Loaded(
                _taken(loaded.pixels, rows),
                loaded.labels[rows],
                files=None if loaded.files is None else loaded.files[rows],
            )
            for rows in asked
        ]
        given = [None if own is None else own[rows] for rows in asked]
    else:
        if labels is not None:
            raise ValueError("labels goes with images; write queries=(images, labels) and gallery=(images, labels)")
        parts, given = _two_sets(queries, gallery, groups, prepare)
    shapes = [part.pixels.shape[1:3] for part in parts]
    if shapes[0] != shapes[1]:
        raise ValueError(f"queries have {shapes[0]} pixels and the gallery {shapes[1]}; bring them to one size")
    values, names = _numbered([part.labels for part in parts])
    numbers = _grouped(given, values)
    query, items = (
        FileSplit(part.pixels, value, names, number, part.files)
        for part, value, number in zip(parts, values, numbers, strict=True)
    )
    return items, query


def _two_sets(
    queries: Any, gallery: Any, groups: Any, prepare: Prepare | None
) -> tuple[list[Loaded], list[np.ndarray | None]]:
    """Queries and gallery, and the groups of each, which mean the same in both."""
    parts = [load(*(pair if _is_pair(pair) else (pair, None)), prepare) for pair in (queries, gallery)]
    if any(part.queries is not None for part in parts):
        raise ValueError(
            "the column query of a labels.csv divides queries from gallery: give that folder alone, as images"
        )
    given = [part.groups if part.group_names is None else part.group_names for part in parts]
    if groups is not None:
        if not _is_pair(groups):
            raise ValueError("groups must be a pair, of the queries and of the gallery, numbered alike")
        given = [_checked_groups(item, len(part.labels)) for item, part in zip(groups, parts, strict=True)]
    if (given[0] is None) != (given[1] is None):
        raise ValueError("groups must be given for both the queries and the gallery, or for neither")
    return parts, given


def training_data(
    training: Any,
    images: Any,
    others: Sequence[Any],
    size: Side | None,
    transform: Prepare | None,
    notes: list[str],
) -> Dataset | None:
    """Return images that a control may be fitted to, and held-out classes to choose by; None if there are none.

    Args:
        training: a pair of images and labels, or a dataset or folder; the last fifth of its classes is held out. Of a
            folder that :func:`dml.data.prepare.prepare` wrote, the training classes are taken, as it divided them; of
            one whose labels.csv has a column ``train``, those with a 1 there.
        images: that are attacked. If training is None and they are such a folder, its training classes are taken.
        others: what is searched and asked instead of images, which training must not be either.
        size, transform: see :func:`splits`; a prepared folder has its size.
        notes: what the user should know is added.

    Returns:
        A dataset whose ``train`` and ``validation`` alone are what their names say.

    Raises:
        ValueError: there are fewer than four classes, or another argument is wrong.
    """
    given = images if training is None else training
    if _is_prepared(given):
        return _prepared(given)
    both = _is_folder(given) and has_training_classes(found_at(given))
    if not both and training is not None and any(_is_same(training, item) for item in (images, *others)):
        raise ValueError("training is what is attacked; give images of other classes, or leave it out")
    if not both and training is None:
        return None
    found = load(*(given if _is_pair(given) else (given, None)), prepared_by(size, transform), training=True)
    (labels,), names = _numbered([found.labels])
    held_out = max(2, round(len(names) * HELD_OUT))
    if len(names) < held_out + 2:
        few = f"training has {len(names)} classes; a control takes two to fit and two to choose by"
        if training is not None:
            raise ValueError(few)
        notes.append(f"{few}: no control is fitted")
        return None
    (groups,) = _grouped([found.groups], [labels])
    is_held_out = labels >= len(names) - held_out
    train, validation = (
        Split(_taken(found.pixels, rows), labels[rows], names, None if groups is None else groups[rows])
        for rows in (np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out))
    )
    return Dataset(train, validation, test=validation)


def _is_prepared(images: Any) -> bool:
    return isinstance(images, str | Path) and (found_at(images) / "images.bin").exists()


def _prepared(images: Any) -> Dataset:
    """What :func:`dml.data.prepare.prepare` wrote."""
    folder = found_at(images)
    try:
        return base.load(folder)
    except KeyError as error:
        told = f"{folder / 'about.json'} lacks {error}: older code prepared these images; remove {folder}, prepare anew"
        raise ValueError(told) from error


def _is_folder(images: Any) -> bool:
    return isinstance(images, str | Path)


def _is_same(first: Any, second: Any) -> bool:
    """Whether two arguments are the same images."""
    if _is_folder(first) and _is_folder(second):
        return found_at(first).resolve() == found_at(second).resolve()
    return first is second and first is not None


def _is_pair(value: Any) -> bool:
    """Whether a value is (images, labels), and not a list of two such items."""
    return isinstance(value, tuple | list) and len(value) == 2 and not isinstance(value[0], tuple)


def _taken(pixels: np.ndarray | Lazy, rows: np.ndarray) -> np.ndarray | Lazy:
    if isinstance(pixels, Lazy):
        names = [pixels.names[row] for row in rows] if pixels.names else ()
        return Lazy(lambda row: pixels.read(int(rows[row])), (len(rows), *pixels.shape[1:]), pixels.threads, names)
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
    found = flat(groups, "groups")
    if len(found) != count:
        raise ValueError(f"there are {len(found)} groups for {count} images; give one per image")
    return found
