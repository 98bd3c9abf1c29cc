"""Tiny-ImageNet: 100,000 training images of 200 classes at 64 pixels, for robust starts."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from dml.data.base import DatasetError, Source
from dml.data.sources import archives
from dml.data.sources.benchmark import Benchmark, Remote, missing, source
from dml.data.sources.folder import read_folder

ROOT = "tiny-imagenet-200"
IMAGES = 500  # of each class; its 50 validation images are left out
TINY_IMAGENET = Benchmark(
    name="tiny_imagenet",
    counts=(196, 98_000, 4, 2_000),
    files=(
        Remote(
            f"{ROOT}.zip",
            f"http://cs231n.stanford.edu/{ROOT}.zip",
            "md5:90528d7ca1a48142e341f4ef8d21d0de",
            "248 MB",
        ),
    ),
    help=f"{ROOT}.zip is at http://cs231n.stanford.edu/{ROOT}.zip",
    terms="For research, as ImageNet.",
)


def read_tiny_imagenet(
    folder: Path, *, counts: tuple[int, int, int, int] = TINY_IMAGENET.counts, images: int = IMAGES
) -> Source:
    """The training images of Tiny-ImageNet, all but the last four classes for training.

    Reads ``tiny-imagenet-200.zip`` or the folder ``tiny-imagenet-200``, as published; or else a ``labels.csv`` of some
    of the images (see :func:`dml.data.sources.folder.read_folder`). Classes are in the order of their WordNet numbers.

    Args:
        folder: that holds one of the three.
        counts: expected of the published files, see :class:`dml.data.sources.benchmark.Benchmark`.
        images: of a class.

    Raises:
        DatasetError: all three are missing, or what is there is incomplete.
    """
    tree = archives.find(folder, ROOT, ROOT)
    if tree is None:
        if (folder / "labels.csv").exists():
            part = read_folder(folder)
            seen = part.train_classes or max(1, len(part.class_names) - TINY_IMAGENET.counts[2])
            return replace(part, train_classes=seen)
        raise missing(TINY_IMAGENET, folder, f"{ROOT}.zip, no folder {ROOT} and no labels.csv")
    lists = {name: content.decode() for name, content in tree.stream(["wnids.txt", "words.txt"])}
    for name in ("wnids.txt", "words.txt"):
        if name not in lists:
            raise DatasetError(f"{tree.place} lacks {ROOT}/{name}; it is incomplete, get it again")
    numbers = sorted(lists["wnids.txt"].split())
    words = dict(line.split("\t", 1) for line in lists["words.txt"].splitlines() if "\t" in line)
    rows = [
        (f"train/{number}/images/{number}_{copy}.JPEG", label, 0)
        for label, number in enumerate(numbers)
        for copy in range(images)
    ]
    table = pd.DataFrame(rows, columns=["path", "label", "tree"])
    return source(TINY_IMAGENET, tuple(counts), table, [words.get(number, number) for number in numbers], [tree])
