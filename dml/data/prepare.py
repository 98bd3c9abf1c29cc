"""Decode and resize a source once into a memory-mapped file of uint8 pixels, with a small JSON beside it."""

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from dml.common.files import atomic
from dml.data.base import DatasetError, Source, split_classes

WAITING = 8  # pictures a worker that may be decoded and not yet written: bounds memory
NOTED = 1000  # pictures after which it is noted which are done, for a preparation that is killed


def prepare(
    source: Source,
    folder: Path,
    *,
    name: str,
    size: int,
    crop: int = 0,
    train_fraction: float,
    validation_fraction: float,
) -> None:
    """Write ``images.bin``, ``index.npy``, ``labels.npy`` and ``about.json`` to ``folder``, all or nothing.

    A picture is resized so that its shorter side is ``size`` pixels. With ``crop`` it is kept up to its edges, which
    training may see, and its central ``crop`` pixels are searched; without, its central square is all that is kept.
    A preparation that was killed goes on where it was, unless the source has changed. Memory does not grow with the
    number of pictures.

    Raises:
        DatasetError: an image cannot be read, a class has fewer than two, or the classes do not fill three splits.
        ValueError: the crop is larger than the picture.
    """
    if crop > size:
        raise ValueError(f"crop is {crop}; it should be at most size, {size}")
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    if len(counts) < 2:
        raise DatasetError(f"{name} holds the single class {source.class_names[0]!r}; at least two are needed")
    if counts.min() < 2:  # a query needs another image to retrieve
        few = source.class_names[counts.argmin()]
        raise DatasetError(f"class {few!r} of {name} has {counts.min()} image; give it another or leave the class out")
    seen = source.train_classes or round(len(counts) * train_fraction)
    splits = split_classes(len(counts), seen, validation_fraction)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        _write_images(source, partial, name=name, size=size, edges=crop > 0)
    except DatasetError:
        shutil.rmtree(partial)
        raise
    np.save(partial / "labels.npy", source.labels)
    about = {
        "dataset": name,
        "images": len(source.labels),
        "size": size,
        "side": crop or size,
        "splits": splits,
        "class_names": source.class_names,
        "images_per_class": counts.tolist(),
        "source_sha256": source.digest,
    }
    (partial / "about.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (partial / "key").unlink()
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _write_images(source: Source, partial: Path, *, name: str, size: int, edges: bool) -> None:
    """Fill ``images.bin`` and ``index.npy`` of a folder that survives a kill, from where it was left."""
    key = hashlib.sha256(f"{source.digest} {size} {edges}".encode()).hexdigest()
    file, noted = partial / "images.bin", partial / "index.npy"
    begun = (partial / "key").exists() and (partial / "key").read_text() == key
    if begun and _end(index := np.load(noted)) <= file.stat().st_size:
        print(f"{name}: going on after {(index[:, 1] > 0).sum():,} of {len(index):,} images")
    else:
        if partial.exists():
            print(f"{name}: the source or its size has changed since a preparation was cut off; beginning anew")
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        file.touch()
        index = np.zeros((len(source.labels), 3), dtype=np.int64)  # height 0: not there yet
        np.save(noted, index)
        (partial / "key").write_text(key)
    waiting = np.flatnonzero(index[:, 1] == 0)
    bar = tqdm(
        total=len(index), initial=len(index) - len(waiting), desc=f"preparing {name}", unit="image", mininterval=5
    )
    # Written to the file itself, not through a map of it, whose pages would count as memory of this process.
    with bar, file.open("r+b") as stream:
        end = _end(index)
        stream.truncate(end)  # what was written after the last note is written again
        stream.seek(end)
        for number, (row, shape, pixels) in enumerate(_pictures(source, waiting, size, edges), start=1):
            index[row] = (end, *shape)
            end += stream.write(pixels)
            bar.update()
            if number % NOTED == 0 or number == len(waiting):
                stream.flush()
                with atomic(noted) as copy, copy.open("wb") as target:
                    np.save(target, index)


def _end(index: np.ndarray) -> int:
    """Where the pictures that are noted end in the file."""
    return int((index[:, 0] + 3 * index[:, 1] * index[:, 2]).max())


def _pictures(source: Source, rows: np.ndarray, size: int, edges: bool) -> Iterator[tuple[int, tuple[int, int], bytes]]:
    """Rows with height, width and bytes of their pictures; decoded by all cores where the source allows it."""

    def fit(make: Callable[[int], Image.Image]) -> tuple[tuple[int, int], bytes]:
        picture = _resized(make(size), size, edges)
        return (picture.height, picture.width), picture.tobytes()

    if not source.parallel:
        for row, make in source.tasks(rows):
            yield row, *fit(make)
        return
    workers = os.cpu_count() or 1
    waiting: deque[tuple[int, Future]] = deque()
    with ThreadPoolExecutor(workers) as pool:  # Pillow decodes and resizes without holding the interpreter
        try:
            for row, make in source.tasks(rows):
                waiting.append((row, pool.submit(fit, make)))
                if len(waiting) > WAITING * workers:
                    row, future = waiting.popleft()
                    yield row, *future.result()
            for row, future in waiting:
                yield row, *future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _resized(picture: Image.Image, size: int, edges: bool) -> Image.Image:
    """The shorter side at ``size`` pixels, as torchvision's Resize does it; without its edges the central square."""
    if not edges:
        return ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    short, long = sorted(picture.size)
    sides = tuple(size if side == short else size * long // short for side in picture.size)
    return picture if picture.size == sides else picture.resize(sides, Image.Resampling.BILINEAR)
