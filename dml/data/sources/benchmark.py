"""What the three benchmarks share: published counts, where the files come from, and pictures out of archives."""

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
        name: to keep it under.
        url: where the publisher serves it, or None where it is no longer served.
        digest: ``algorithm:hex`` as the publisher or its mirrors give it.
        size: in words, for people.
    """

    name: str
    url: str | None
    digest: str | None
    size: str


@dataclass(frozen=True)
class Benchmark:
    """A published dataset and its protocol.

    Attributes:
        name: the word of params.yaml, and of the folder below data/.
        counts: classes and images of the training half, classes and images of the test half.
        files: what has to lie in the folder.
        help: where a person gets what is not served, one sentence.
        terms: on which terms it may be used, one sentence.
    """

    name: str
    counts: tuple[int, int, int, int]
    files: tuple[Remote, ...]
    help: str
    terms: str


def missing(benchmark: Benchmark, folder: Path, what: str) -> DatasetError:
    """The error for a file or folder that is not there: it says what to do."""
    return DatasetError(
        f"{folder} holds no {what}; `python -m dml.data fetch {benchmark.name}` gets it or says where it is"
    )


def source(
    benchmark: Benchmark,
    counts: tuple[int, int, int, int],
    table: pd.DataFrame,
    class_names: list[str],
    trees: list[Tree],
) -> Source:
    """A source out of archives, once its counts are those that were published.

    Args:
        benchmark: what it should be.
        counts: that are expected, the published ones but for tests.
        table: ``path, label, tree``, a row an image; label from 0, tree a place in ``trees``.
        class_names: label -> name.
        trees: that the images lie in.

    Raises:
        DatasetError: other counts than the published ones.
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
            f"{benchmark.name} should have {_words(counts)}, and its lists have {_words(found)}; get the files again"
        )
    places = {(tree, path): row for row, (tree, path) in enumerate(zip(table["tree"], table["path"], strict=True))}

    def tasks(rows: np.ndarray) -> Iterator[Task]:
        wanted = set(rows.tolist())
        for number, tree in enumerate(trees):
            own = {path: row for (place, path), row in places.items() if place == number and row in wanted}
            for path, content in tree.stream(list(own)):
                row = own.pop(path)
                yield row, functools.partial(picture, content, f"{tree.place}: {path}")
            if own:
                raise DatasetError(f"{tree.place} lacks {tree.root}/{next(iter(own))}; it is not whole, get it again")

    digest = "|".join([*(tree.digest() for tree in trees), str(counts)])
    return Source(class_names, labels, tasks, digest, train_classes=seen, parallel=True)


def _words(counts: tuple[int, int, int, int]) -> str:
    return "{:,} classes with {:,} images and {:,} classes with {:,} images".format(*counts)


def picture(content: bytes, name: str, wanted: int) -> Image.Image:
    """Bytes as an RGB picture; grey and CMYK are converted. EXIF rotation is not applied: the published protocol
    does not either.

    Raises:
        DatasetError: the bytes are no picture.
    """
    try:
        opened = Image.open(io.BytesIO(content))
        opened.draft(None, (2 * wanted, 2 * wanted))  # a JPEG is decoded at a part of its size if that is enough
        opened.load()
        return opened.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{name} is no readable image; get the file again") from error
