"""Shared by the benchmarks: published counts, where the files come from, and images out of archives."""

import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from dml.data.base import DatasetError, Source, Task
from dml.data.sources.archives import Tree


@dataclass(frozen=True)
class Remote:
    """A file that people download.

    Attributes:
        name: of the file to write.
        url: where the publisher serves it, or None if it is no longer served.
        digest: ``algorithm:hex`` as the publisher or its mirrors state it.
        size: with its unit, for messages.
    """

    name: str
    url: str | None
    digest: str | None
    size: str


@dataclass(frozen=True)
class Benchmark:
    """A published dataset and its protocol.

    Attributes:
        name: of the source, and of the folder in data/.
        counts: classes and images of the training half, classes and images of the test half.
        files: that the folder must hold.
        help: where to find the files that are not served, one sentence.
        terms: of use, one sentence.
    """

    name: str
    counts: tuple[int, int, int, int]
    files: tuple[Remote, ...]
    help: str
    terms: str


def missing(benchmark: Benchmark, folder: Path, what: str) -> DatasetError:
    """The error for a missing file or folder; it says what to do."""
    return DatasetError(
        f"{folder} holds no {what}; `python -m dml datasets fetch {benchmark.name}` gets it or says where to find it"
    )


def source(
    benchmark: Benchmark,
    counts: tuple[int, int, int, int],
    table: pd.DataFrame,
    class_names: list[str],
    trees: list[Tree],
) -> Source:
    """A source that reads from archives, once its counts equal the published ones.

    Args:
        benchmark: its name, for messages.
        counts: expected; the published ones except in tests.
        table: ``path, label, tree``, one row per image; labels count from 0, ``tree`` is an index of ``trees``.
        class_names: label -> name.
        trees: that hold the images.

    Raises:
        DatasetError: the counts differ from the published ones.
    """
    table = table.sort_values(["label", "path"], kind="stable", ignore_index=True)
    labels = table["label"].to_numpy().astype(np.int64)
    seen = counts[0]
    classes, images = np.unique(labels, return_counts=True)
    found = (
        int((classes < seen).sum()),
        int(images[classes < seen].sum()),
        int((classes >= seen).sum()),
        int(images[classes >= seen].sum()),
    )
    if found != counts:
        raise DatasetError(
            f"{benchmark.name} should have {_words(counts)}, but its lists have {_words(found)}; get the files again"
        )
    places = {(tree, path): row for row, (tree, path) in enumerate(zip(table["tree"], table["path"], strict=True))}

    def tasks(rows: np.ndarray) -> Iterator[Task]:
        wanted = set(rows.tolist())
        for number, tree in enumerate(trees):
            own = {path: row for (place, path), row in places.items() if place == number and row in wanted}
            for path, content in tree.stream(list(own)):
                row = own.pop(path)
                yield row, functools.partial(decode, content, f"{tree.place}: {path}")
            if own:
                raise DatasetError(f"{tree.place} lacks {tree.root}/{next(iter(own))}; it is incomplete, get it again")

    digest = "|".join([*(tree.digest() for tree in trees), str(counts)])
    return Source(class_names, labels, tasks, digest, train_classes=seen, parallel=True)


def _words(counts: tuple[int, int, int, int]) -> str:
    return "{:,} classes with {:,} images and {:,} classes with {:,} images".format(*counts)


def decode(content: bytes, name: str, wanted: int) -> Image.Image:
    """Bytes as an RGB image; grey and CMYK are converted.

    EXIF rotation is not applied, as in the published protocol. A JPEG is decoded at a fraction of its size if its
    shorter side keeps at least ``2 * wanted`` pixels.

    Args:
        content: of the file.
        name: for the message.
        wanted: size of the prepared image, pixels.

    Raises:
        DatasetError: the bytes are no image.
    """
    try:
        opened = Image.open(io.BytesIO(content))
        opened.draft(None, (2 * wanted, 2 * wanted))
        opened.load()
        return opened.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{name} is no readable image; get the file again") from error
