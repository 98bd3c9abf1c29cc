"""What every dataset gives: a source to prepare once, and memory-mapped splits to read ever after."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


class DatasetError(ValueError):
    """A dataset that cannot be used, in one sentence that names the file or folder and what would be right."""


Task = tuple[int, Callable[[int], Image.Image]]
"""A row, and what makes its picture when told the size wanted: a larger file may be decoded at a part of its size."""


@dataclass(frozen=True)
class Source:
    """Raw images before preparation, in rows sorted by label.

    Attributes:
        class_names: one name a class; the class order decides the split.
        labels: (N,) int64, ascending, counted from 0.
        tasks: row numbers -> a task for each, in the order in which they are quickest to read.
        digest: over everything that the images depend on.
        train_classes: how many of the classes are for training where a protocol says so, else None.
        parallel: whether tasks may run in threads side by side.
    """

    class_names: list[str]
    labels: np.ndarray
    tasks: Callable[[np.ndarray], Iterator[Task]]
    digest: str
    train_classes: int | None = None
    parallel: bool = False

    def read(self, row: int) -> Image.Image:
        """One picture in its full size."""
        ((_, make),) = self.tasks(np.array([row]))
        return make(2**15)


@dataclass(frozen=True)
class Pictures:
    """Pictures that stay on disk until they are read. Used as an array (N, side, side, 3), it gives their centres.

    Attributes:
        pixels: (bytes,) uint8 of all pictures, memory-mapped, each of them (height, width, 3).
        index: (N, 3), where each begins in ``pixels``, its height and its width.
        side: of the central square that is seen, at most as long as any picture's shorter side.
    """

    pixels: np.ndarray
    index: np.ndarray
    side: int

    def whole(self, row: int) -> np.ndarray:
        """A picture up to its edges, (height, width, 3)."""
        start, height, width = self.index[row]
        return self.pixels[start : start + height * width * 3].reshape(height, width, 3)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the array that this stands for."""
        return len(self), self.side, self.side, 3

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """The centre of one picture, or of several, chosen as rows of an array are."""
        if isinstance(rows, int | np.integer):
            picture = self.whole(int(rows))
            top, left = ((length - self.side) // 2 for length in picture.shape[:2])
            return picture[top : top + self.side, left : left + self.side]
        numbers = np.arange(len(self))[rows]
        return np.stack([self[row] for row in numbers]) if len(numbers) else np.empty((0, *self.shape[1:]), np.uint8)


@dataclass(frozen=True)
class Split:
    """Images of a contiguous range of classes.

    Attributes:
        images: (N, H, W, 3) uint8.
        labels: (N,) int64, ascending, counted from 0 over the whole dataset.
        class_names: label -> name, for the whole dataset.
    """

    images: np.ndarray | Pictures
    labels: np.ndarray
    class_names: list[str]

    @property
    def classes(self) -> np.ndarray:
        """The labels that occur, ascending."""
        return np.unique(self.labels)

    def whole(self, row: int) -> np.ndarray:
        """A picture up to its edges, (height, width, 3): more than ``images`` gives where that is a central square."""
        return self.images.whole(row) if isinstance(self.images, Pictures) else self.images[row]

    def statistics(self) -> dict[str, list[float]]:
        """Mean and standard deviation of each channel, pixels in [0, 1], from at most 2,000 evenly spaced images."""
        total, squares, count = np.zeros(3, np.int64), np.zeros(3, np.int64), 0
        for row in range(0, len(self), -(-len(self) // 2000)):
            values = self.images[row].reshape(-1, 3).astype(np.int64)  # whole numbers: exact
            total += values.sum(0)
            squares += (values**2).sum(0)
            count += len(values)
        mean = total / count
        std = np.sqrt(squares / count - mean**2)
        return {"mean": (mean / 255).tolist(), "std": (std / 255).tolist()}

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Three class-disjoint splits: test is the second half of the classes, validation comes out of the first."""

    train: Split
    validation: Split
    test: Split


def split_classes(classes: int, seen: int, validation_fraction: float) -> dict[str, tuple[int, int]]:
    """Class ranges [first, last) of the three splits: first train, then validation, then test.

    Args:
        classes: number of classes in all.
        seen: how many of them are for training, one half in the field's protocol.
        validation_fraction: share of the training classes that are held out to select a model with.

    Raises:
        DatasetError: a split would be left with fewer than two classes.
    """
    held_out = max(2, round(seen * validation_fraction))
    splits = {"train": (0, seen - held_out), "validation": (seen - held_out, seen), "test": (seen, classes)}
    for name, (first, last) in splits.items():
        if last - first < 2:
            raise DatasetError(f"{classes} classes leave {max(last - first, 0)} for {name}; every split needs two")
    return splits


def load(folder: Path, *, validation_fraction: float | None = None) -> Dataset:
    """Open what :func:`dml.data.prepare.prepare` wrote; images stay on disk until they are read.

    Args:
        folder: that holds them.
        validation_fraction: share of the training classes to hold out, if another than they were prepared with.

    Raises:
        DatasetError: a split would be left with fewer than two classes.
    """
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    pixels = np.memmap(folder / "images.bin", np.uint8, "r")
    index, labels = np.load(folder / "index.npy"), np.load(folder / "labels.npy")
    ranges = about["splits"]
    if validation_fraction is not None:
        ranges = split_classes(len(about["class_names"]), ranges["test"][0], validation_fraction)

    def split(name: str) -> Split:
        rows = slice(*np.searchsorted(labels, ranges[name]))
        return Split(Pictures(pixels, index[rows], about["side"]), labels[rows], about["class_names"])

    return Dataset(train=split("train"), validation=split("validation"), test=split("test"))
