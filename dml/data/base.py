"""What every dataset provides: a source to prepare once, and memory-mapped splits to read from then on."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

LOOKED_AT = 0.2  # share of the training classes that are watched where none is held out


class DatasetError(ValueError):
    """A dataset that cannot be used; one sentence names the file or folder and what would be right."""


Task = tuple[int, Callable[[int], Image.Image]]
"""A row, and a function that makes its image, given the size wanted: a large file may be decoded at reduced size."""


@dataclass(frozen=True)
class Source:
    """Raw images before preparation, in rows sorted by label.

    Attributes:
        class_names: one name per class; the order of the classes decides the split.
        labels: (N,) int64, ascending, counted from 0.
        tasks: row numbers -> one task per row, in the order in which they are quickest to read.
        digest: of everything that the images, labels, groups and queries depend on.
        train_classes: number of training classes where a protocol fixes it, else None.
        parallel: whether tasks may run side by side in threads.
        groups: (N,) int64 of at least 0: images of the same track, burst or camera. A query never counts items of its
            group, right or wrong. None: each image forms its own group.
        queries: (N,) bool, used for test classes only: True makes an image a query, False a gallery item. None: each
            image is both.
    """

    class_names: list[str]
    labels: np.ndarray
    tasks: Callable[[np.ndarray], Iterator[Task]]
    digest: str
    train_classes: int | None = None
    parallel: bool = False
    groups: np.ndarray | None = None
    queries: np.ndarray | None = None

    def read(self, row: int) -> Image.Image:
        """One image in its full size."""
        ((_, make),) = self.tasks(np.array([row]))
        return make(2**15)


@dataclass(frozen=True)
class Pictures:
    """Images that stay on disk until they are read. Indexed like an array (N, H, W, 3), it gives their centres.

    Attributes:
        pixels: (bytes,) uint8 of all images, memory-mapped, each of them (height, width, 3).
        index: (N, 3): start in ``pixels``, height and width of each image.
        sides: height and width of the central part that indexing gives, at most those of any image.
    """

    pixels: np.ndarray
    index: np.ndarray
    sides: tuple[int, int]

    def whole(self, row: int) -> np.ndarray:
        """An image up to its edges, (height, width, 3)."""
        start, height, width = self.index[row]
        return self.pixels[start : start + height * width * 3].reshape(height, width, 3)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the array that this stands for."""
        return len(self), *self.sides, 3

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """The centre of one image, or of several, chosen like rows of an array."""
        if isinstance(rows, int | np.integer):
            image = self.whole(int(rows))
            height, width = self.sides
            top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
            return image[top : top + height, left : left + width]
        numbers = np.arange(len(self))[rows]
        return np.stack([self[row] for row in numbers]) if len(numbers) else np.empty((0, *self.shape[1:]), np.uint8)


@dataclass(frozen=True)
class Split:
    """The images of some classes.

    Attributes:
        images: (N, H, W, 3) uint8.
        labels: (N,) int64, ascending, counted from 0 over the whole dataset.
        class_names: label -> name, for the whole dataset.
        groups: (N,) int64, numbered over the whole dataset, or None, see :class:`Source`.
    """

    images: np.ndarray | Pictures
    labels: np.ndarray
    class_names: list[str]
    groups: np.ndarray | None = None

    def without(self, labels: np.ndarray) -> "Split":
        """The images of the other classes."""
        rows = ~np.isin(self.labels, labels)
        images = self.images
        images = replace(images, index=images.index[rows]) if isinstance(images, Pictures) else images[rows]
        return Split(images, self.labels[rows], self.class_names, None if self.groups is None else self.groups[rows])

    @property
    def classes(self) -> np.ndarray:
        """The labels that occur, ascending."""
        return np.unique(self.labels)

    def whole(self, row: int) -> np.ndarray:
        """An image up to its edges, (height, width, 3); ``images`` may hold only its central square."""
        return self.images.whole(row) if isinstance(self.images, Pictures) else self.images[row]

    def statistics(self) -> dict[str, list[float]]:
        """``mean`` and ``std`` of each channel, pixels in [0, 1], from at most 2,000 evenly spaced images.

        The deviation of a channel that is the same everywhere is 1, so that it can be divided by.
        """
        total, squares, count = np.zeros(3, np.int64), np.zeros(3, np.int64), 0
        for row in range(0, len(self), -(-len(self) // 2000)):
            values = self.images[row].reshape(-1, 3).astype(np.int64)  # integers: exact
            total += values.sum(0)
            squares += (values**2).sum(0)
            count += len(values)
        mean = total / count
        variance = squares / count - mean**2
        std = np.where(squares * count == total**2, 255, np.sqrt(variance.clip(0)))
        return {"mean": (mean / 255).tolist(), "std": (std / 255).tolist()}

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Class-disjoint splits: test is the second part of the classes, validation comes out of the first.

    Attributes:
        train: to train on.
        validation: held-out training classes, to select an epoch by; where none is held out, some that train, too.
        test: the gallery of the test classes.
        queries: the queries of the test classes where the dataset sets them apart from the gallery. None: each test
            image is a query to all others.
        held_out: whether no class of ``validation`` trains.
    """

    train: Split
    validation: Split
    test: Split
    queries: Split | None = None
    held_out: bool = True


def split_classes(classes: int, seen: int, validation_fraction: float) -> dict[str, tuple[int, int]]:
    """Class ranges [first, last) of the three splits: first train, then validation, then test.

    Args:
        classes: number of all classes.
        seen: number of training classes, one half in the field's protocol.
        validation_fraction: share of the training classes that are held out to select a model. 0: all of them train,
            and validation is the last fifth of them, to look at.

    Raises:
        DatasetError: a split would have fewer than two classes.
    """
    kept = seen - max(2, round(seen * (validation_fraction or LOOKED_AT)))
    splits = {"train": (0, kept if validation_fraction else seen), "validation": (kept, seen), "test": (seen, classes)}
    for name, (first, last) in splits.items():
        if last - first < 2:
            raise DatasetError(f"{classes} classes leave {max(last - first, 0)} for {name}; every split needs two")
    return splits


def load(folder: Path, *, validation_fraction: float | None = None) -> Dataset:
    """Open what :func:`dml.data.prepare.prepare` wrote; images stay on disk until they are read.

    Where the dataset has groups, validation leaves out classes of a single group: a query of such a class could find
    nothing.

    Args:
        folder: of the prepared dataset.
        validation_fraction: as :func:`split_classes` has it, if it differs from that of the preparation.

    Raises:
        DatasetError: a split would have fewer than two classes.
    """
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    pixels = np.memmap(folder / "images.bin", np.uint8, "r")
    index, labels = np.load(folder / "index.npy"), np.load(folder / "labels.npy")
    groups, queries = (_optional(folder / f"{name}.npy") for name in ("groups", "queries"))
    ranges, sides = about["splits"], (about["height"] or about["side"], about["side"])
    if validation_fraction is not None:
        ranges = split_classes(len(about["class_names"]), ranges["test"][0], validation_fraction)

    def split(name: str, among: np.ndarray | None = None) -> Split:
        rows: slice | np.ndarray = slice(*np.searchsorted(labels, ranges[name]))
        if among is not None:
            rows = np.arange(len(labels))[rows][among[rows]]
        own = None if groups is None else groups[rows]
        return Split(Pictures(pixels, index[rows], sides), labels[rows], about["class_names"], own)

    validation = split("validation", None if groups is None else _searchable(labels, groups))
    if len(validation.classes) < 2:
        raise DatasetError(
            f"{about['dataset']}: validation has {len(validation.classes)} classes of two or more groups; it needs two"
        )
    return Dataset(
        train=split("train"),
        validation=validation,
        test=split("test", None if queries is None else ~queries),
        queries=None if queries is None else split("test", queries),
        held_out=ranges["train"][1] <= ranges["validation"][0],
    )


def _optional(file: Path) -> np.ndarray | None:
    return np.load(file) if file.exists() else None


def _searchable(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(N,) bool: whether an image's class has at least two groups."""
    pairs = np.unique(np.stack([labels, groups]), axis=1)
    return np.bincount(pairs[0], minlength=labels.max() + 1)[labels] >= 2
