"""What every dataset gives: a source to prepare once, and memory-mapped splits to read ever after."""

import json
from collections.abc import Callable, Iterator
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
class Split:
    """Images of a contiguous range of classes.

    Attributes:
        images: (N, H, W, 3) uint8, memory-mapped.
        labels: (N,) int64, ascending, counted from 0 over the whole dataset.
        class_names: label -> name, for the whole dataset.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: list[str]

    @property
    def classes(self) -> np.ndarray:
        """The labels that occur, ascending."""
        return np.unique(self.labels)

    def statistics(self) -> dict[str, list[float]]:
        """Mean and standard deviation of each channel, pixels in [0, 1], from at most 2,000 evenly spaced images."""
        some = self.images[:: -(-len(self) // 2000)]
        total, squares = np.zeros(3, np.int64), np.zeros(3, np.int64)
        for picture in some:  # one at a time, in whole numbers: exact, and without a copy of them all
            values = picture.reshape(-1, 3).astype(np.int64)
            total += values.sum(0)
            squares += (values**2).sum(0)
        count = some[..., 0].size
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


def load(folder: Path) -> Dataset:
    """Open what :func:`dml.datasets.prepare.prepare` wrote; images stay on disk until they are read."""
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    images = np.load(folder / "images.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy")

    margin = (about["size"] - about["crop"]) // 2 if about["crop"] else 0
    centre = slice(margin, about["size"] - margin)

    def split(name: str, part: slice) -> Split:
        first, last = about["splits"][name]
        rows = slice(*np.searchsorted(labels, [first, last]))
        return Split(images[rows, part, part], labels[rows], about["class_names"])

    return Dataset(
        train=split("train", slice(None)), validation=split("validation", centre), test=split("test", centre)
    )
