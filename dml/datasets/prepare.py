"""Decode and resize a source once into memory-mapped uint8 arrays, with a small JSON beside them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from dml.datasets.base import DatasetError, Source
from dml.paths import atomic


def split_classes(classes: int, train_fraction: float, validation_fraction: float) -> dict[str, tuple[int, int]]:
    """Class ranges [first, last) of the three splits: first train, then validation, then test.

    Args:
        classes: number of classes in all.
        train_fraction: share of the classes that are for training, one half in the field's protocol.
        validation_fraction: share of the training classes that are held out to select a model with.

    Raises:
        DatasetError: a split would be left with fewer than two classes.
    """
    seen = round(classes * train_fraction)
    held_out = max(2, round(seen * validation_fraction))
    splits = {"train": (0, seen - held_out), "validation": (seen - held_out, seen), "test": (seen, classes)}
    for name, (first, last) in splits.items():
        if last - first < 2:
            raise DatasetError(f"{classes} classes leave {max(last - first, 0)} for {name}; every split needs two")
    return splits


def prepare(
    source: Source, folder: Path, *, name: str, size: int, train_fraction: float, validation_fraction: float
) -> None:
    """Write ``images.npy`` (N, size, size, 3), ``labels.npy`` (N,) and ``about.json`` to ``folder``, all or nothing.

    A picture is resized so that its shorter side is ``size`` pixels, then cut to its central square.

    Raises:
        DatasetError: an image cannot be read, a class has fewer than two, or the classes do not fill three splits.
    """
    counts = np.bincount(source.labels, minlength=len(source.class_names))
    if len(counts) < 2:
        raise DatasetError(f"{name} holds the single class {source.class_names[0]!r}; at least two are needed")
    if counts.min() < 2:  # a query needs another image to retrieve
        few = source.class_names[counts.argmin()]
        raise DatasetError(f"class {few!r} of {name} has {counts.min()} image; give it another or leave the class out")
    splits = split_classes(len(source.class_names), train_fraction, validation_fraction)
    with atomic(folder) as partial:
        partial.mkdir()
        images = np.lib.format.open_memmap(
            partial / "images.npy", mode="w+", dtype=np.uint8, shape=(len(source.labels), size, size, 3)
        )
        for row in tqdm(range(len(source.labels)), desc=f"preparing {name}", unit="image", mininterval=5):
            images[row] = np.asarray(ImageOps.fit(source.read(row), (size, size), Image.Resampling.LANCZOS))
        images.flush()
        np.save(partial / "labels.npy", source.labels)
        about = {
            "dataset": name,
            "images": len(source.labels),
            "size": size,
            "splits": splits,
            "class_names": source.class_names,
            "images_per_class": counts.tolist(),
            "source_sha256": source.digest,
        }
        (partial / "about.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
