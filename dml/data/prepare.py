"""Decodes and resizes a source once, into a file of uint8 pixels that is memory-mapped from then on."""

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from dml.common.files import atomic
from dml.data.base import DatasetError, Source, split_classes

WAITING = 8  # images per worker that may be decoded and not yet written: bounds memory
NOTED = 1000  # images after which progress is saved, for a preparation that is killed


class Fit(NamedTuple):
    """To what images are resized: ``size`` and ``height`` as :func:`prepare` has them, and whether edges are kept."""

    size: int
    height: int
    edges: bool


def prepare(
    source: Source,
    folder: Path,
    *,
    name: str,
    size: int,
    height: int = 0,
    crop: int = 0,
    train_fraction: float,
    validation_fraction: float,
) -> None:
    """Write ``images.bin``, ``index.npy``, ``labels.npy`` and ``about.json`` to ``folder``, all or nothing.

    ``groups.npy`` and ``queries.npy`` join them where the source has groups, or queries apart from the gallery. A
    preparation that was killed continues, unless the source has changed. Memory does not grow with the dataset.

    Args:
        source: of the images.
        folder: to write; an old one is replaced.
        name: of the dataset.
        size: of the shorter side of a prepared image, pixels.
        height: of an image that is ``size`` pixels wide, to which the whole image is resized; 0 for squares.
        crop: side of the central square that is searched; training may see the whole image. 0 keeps nothing but the
            central square of ``size`` pixels, or the whole image with a height.
        train_fraction: share of the classes, from the first on, that are for training, unless the source fixes it.
        validation_fraction: share of the training classes that are held out, see :func:`dml.data.base.split_classes`.

    Raises:
        DatasetError: an image cannot be read, a query has no image to retrieve, or a split would lack classes.
        ValueError: the crop is larger than the image, or there is a height as well.
    """
    if crop > size:
        raise ValueError(f"crop is {crop}; it must be at most size, {size}")
    if crop and height:
        raise ValueError(f"height is {height}; with a crop it must be 0")
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    seen = source.train_classes or round(len(counts) * train_fraction)
    _check(source, counts, seen, name)
    splits = split_classes(len(counts), seen, validation_fraction)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        _write_images(source, partial, name=name, fit=Fit(size, height, crop > 0))
    except DatasetError:
        shutil.rmtree(partial)
        raise
    for key in ("labels", "groups", "queries"):
        if (values := getattr(source, key)) is not None:
            np.save(partial / f"{key}.npy", values)
    about = {
        "dataset": name,
        "images": len(source.labels),
        "size": size,
        "side": crop or size,
        "height": height,
        "splits": splits,
        "class_names": source.class_names,
        "images_per_class": counts.tolist(),
        "source_sha256": source.digest,
    }
    (partial / "about.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (partial / "key").unlink()
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _check(source: Source, counts: np.ndarray, seen: int, name: str) -> None:
    """Raises DatasetError if a class is too small to train on, or a test query has no image to retrieve."""
    names, labels = source.class_names, source.labels
    if (np.diff(labels) < 0).any():
        raise DatasetError(f"the source of {name} gives images out of the order of their labels; sort them by label")
    if len(counts) < 2:
        raise DatasetError(f"{name} holds the single class {names[0]!r}; at least two are needed")
    searched = counts if source.queries is None else counts[:seen]  # a class of the gallery alone may have one image
    if searched.min(initial=2) < 2:
        few = searched.argmin()
        raise DatasetError(
            f"class {names[few]!r} of {name} has {searched[few]} image; give it another or leave the class out"
        )
    test = labels >= seen
    asked, found = (test, test) if source.queries is None else (test & source.queries, test & ~source.queries)
    if test.any() and not asked.any():
        raise DatasetError(f"{name} has no query among its test classes; mark some of their images as queries")
    groups = np.arange(len(labels)) if source.groups is None else source.groups
    pairs, number = np.unique(np.stack([labels, groups]), axis=1, return_inverse=True)
    number = number.reshape(-1)  # numpy 2.0 gave it another shape
    in_class = np.bincount(labels[found], minlength=len(counts))
    in_group = np.bincount(number[found], minlength=pairs.shape[1])
    alone = asked & (in_class[labels] == in_group[number])
    if alone.any():
        what = "image of its class in the gallery" + ("" if source.groups is None else " outside its group")
        raise DatasetError(f"a query of class {names[labels[alone.argmax()]]!r} of {name} has no {what}; give it one")


def _write_images(source: Source, partial: Path, *, name: str, fit: Fit) -> None:
    """Fill ``images.bin`` and ``index.npy`` of a folder that survives a kill, and continue where it stopped."""
    key = hashlib.sha256(f"{source.digest} {fit}".encode()).hexdigest()
    file, noted = partial / "images.bin", partial / "index.npy"
    begun = (partial / "key").exists() and (partial / "key").read_text() == key
    if begun and _end(index := np.load(noted)) <= file.stat().st_size:
        print(f"{name}: continues after {(index[:, 1] > 0).sum():,} of {len(index):,} images")
    else:
        if partial.exists():
            print(f"{name}: the source or its size has changed since a preparation was killed; starting over")
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        file.touch()
        index = np.zeros((len(source.labels), 3), dtype=np.int64)  # height 0: not written yet
        np.save(noted, index)
        (partial / "key").write_text(key)
    waiting = np.flatnonzero(index[:, 1] == 0)
    bar = tqdm(
        total=len(index), initial=len(index) - len(waiting), desc=f"preparing {name}", unit="image", mininterval=5
    )
    # Written to the file itself: the pages of a memory map would count as memory of this process.
    with bar, file.open("r+b") as stream:
        end = _end(index)
        stream.truncate(end)  # images written after the last save are written again
        stream.seek(end)
        for number, (row, shape, pixels) in enumerate(_images(source, waiting, fit), start=1):
            index[row] = (end, *shape)
            end += stream.write(pixels)
            bar.update()
            if number % NOTED == 0 or number == len(waiting):
                stream.flush()
                with atomic(noted) as copy, copy.open("wb") as target:
                    np.save(target, index)


def _end(index: np.ndarray) -> int:
    """End of the images listed in an index, bytes."""
    return int((index[:, 0] + 3 * index[:, 1] * index[:, 2]).max())


def _images(source: Source, rows: np.ndarray, fit: Fit) -> Iterator[tuple[int, tuple[int, int], bytes]]:
    """Rows with height, width and bytes of their images, decoded on all cores where the source allows it."""

    def made(make: Callable[[int], Image.Image]) -> tuple[tuple[int, int], bytes]:
        image = _resized(make(max(fit.size, fit.height)), fit)
        return (image.height, image.width), image.tobytes()

    if not source.parallel:
        for row, make in source.tasks(rows):
            yield row, *made(make)
        return
    workers = os.cpu_count() or 1
    waiting: deque[tuple[int, Future]] = deque()
    with ThreadPoolExecutor(workers) as pool:  # Pillow releases the interpreter's lock
        try:
            for row, make in source.tasks(rows):
                waiting.append((row, pool.submit(made, make)))
                if len(waiting) > WAITING * workers:
                    row, future = waiting.popleft()
                    yield row, *future.result()
            for row, future in waiting:
                yield row, *future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _resized(image: Image.Image, fit: Fit) -> Image.Image:
    """An image with a shorter side of ``size`` pixels, as torchvision's Resize; without edges its central square.

    With a height, the whole image at this height and width, as of persons.
    """
    if fit.height:
        return image.resize((fit.size, fit.height), Image.Resampling.BILINEAR)
    if not fit.edges:
        return ImageOps.fit(image, (fit.size, fit.size), Image.Resampling.BILINEAR)
    short, long = sorted(image.size)
    sides = tuple(fit.size if side == short else fit.size * long // short for side in image.size)
    return image if image.size == sides else image.resize(sides, Image.Resampling.BILINEAR)
