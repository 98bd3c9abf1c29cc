"""Classification datasets that torchvision downloads and checks, all official splits joined.

The archives of CIFAR hold pickles, which run code when read; torchvision reads them once their MD5 is the published
one.
"""

import functools
import hashlib
import pickle
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError

import numpy as np
from PIL import Image
from torchvision import datasets
from torchvision.datasets import VisionDataset

from dml.common.checks import known
from dml.data.base import DatasetError, Source, Task

Splits = dict[str, dict[str, str | bool]]
"""Name of a split -> the constructor's arguments that choose it."""

FLAG: Splits = {"train": {"train": True}, "test": {"train": False}}
TWO: Splits = {name: {"split": name} for name in ("train", "test")}
THREE: Splits = {name: {"split": name} for name in ("train", "val", "test")}
WHOLE: Splits = {"all": {}}
DATASETS: dict[str, Splits] = {
    "CIFAR10": FLAG,
    "CIFAR100": FLAG,
    "Caltech101": WHOLE,
    "Caltech256": WHOLE,
    "Country211": {name: {"split": name} for name in ("train", "valid", "test")},
    "DTD": THREE,
    "EuroSAT": WHOLE,
    "FGVCAircraft": THREE,
    "FashionMNIST": FLAG,
    "Flowers102": THREE,
    "Food101": TWO,
    "GTSRB": TWO,
    "KMNIST": FLAG,
    "MNIST": FLAG,
    "OxfordIIITPet": {name: {"split": name} for name in ("trainval", "test")},
    "SVHN": TWO,
    "StanfordCars": TWO,
}
DEFAULT = {"GTSRB": ["train"]}  # only there it is known which images show the same sign; see read_torchvision
LABELS = ("targets", "_labels", "labels", "y")  # where torchvision's classes keep them
PACKED = {".zip", ".tgz", ".gz", ".tar"}  # archives may be deleted once they are unpacked
MARK = ".unpacking"  # a file that stands in the folder while torchvision downloads and unpacks
# What torchvision raises for a file that is missing, or is not what it should be.
FAILURES = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    EOFError,
    pickle.UnpicklingError,
    tarfile.TarError,
    zipfile.BadZipFile,
)

BEFORE_UNPACKING = (URLError, ConnectionError, TimeoutError, RuntimeError, ValueError)  # of these: nothing is unpacked


def read_torchvision(folder: Path, *, name: str, splits: list[str] | None = None) -> Source:
    """A classification dataset of torchvision, its classes in their official order.

    The official splits part the images of each class; here they are joined, and the first half of the classes trains.
    Files that are missing are downloaded, and torchvision checks them; without a network, put the official archives
    where torchvision looks for them, below ``folder``.

    GTSRB photographs each sign in a track of 30 frames, and its file names tell the tracks of the training split: they
    become groups. The test split hides its tracks, so a query from it would be answered by another frame of the same
    sign. By default GTSRB is its training split alone; with ``splits: [train, test]`` each test image forms its own
    group.

    Args:
        folder: for this dataset alone.
        name: of the class in ``torchvision.datasets``, a key of ``DATASETS``.
        splits: official splits to join; None joins all of them (of GTSRB: train).

    Raises:
        ValueError: torchvision has no such dataset, or the dataset no such split.
        DatasetError: files are missing and cannot be downloaded, or they are damaged.
    """
    known("name", name, DATASETS)
    chosen = DEFAULT.get(name, list(DATASETS[name])) if splits is None else list(dict.fromkeys(splits))
    for split in chosen:
        known(f"splits of {name}:", split, DATASETS[name])
    if not chosen:
        raise ValueError(f"splits is empty; {name} has {', '.join(DATASETS[name])}")
    parts = [_open(folder, name, split) for split in chosen]
    labels = np.concatenate([_labels(part) for part in parts])
    order = np.argsort(labels, kind="stable")
    classes, labels = np.unique(labels[order], return_inverse=True)
    places = [(part, number) for part in parts for number in range(len(part))]

    def tasks(rows: np.ndarray) -> Iterator[Task]:
        for row in rows.tolist():
            part, number = places[order[row]]
            yield row, functools.partial(_image, part, number, f"{folder}: image {number} of {name}")

    names = _class_names(parts[0])
    return Source(
        class_names=[names[label] if names else f"class {label}" for label in classes],
        labels=labels.astype(np.int64),
        tasks=tasks,
        digest=_digest(folder, name, chosen, labels),
        parallel=True,
        groups=_tracks(parts, chosen)[order] if name == "GTSRB" else None,
    )


def _open(folder: Path, name: str, split: str) -> VisionDataset:
    """One official split, downloaded if it is not there."""
    mark = folder / MARK
    if mark.exists():
        raise DatasetError(f"{folder} was left half unpacked; delete all but the archives there and try again")
    make = functools.partial(getattr(datasets, name), folder, **DATASETS[name][split])
    try:
        return make(download=False)
    except FAILURES:
        pass  # missing or incomplete: torchvision downloads what it lacks
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        made = make(download=True)
    except FAILURES as error:
        if isinstance(error, BEFORE_UNPACKING):
            mark.unlink()
        raise DatasetError(
            f"{folder} lacks the split {split!r} of {name} or holds it damaged, and torchvision cannot download it "
            f"({type(error).__name__}: {' '.join(str(error).split())}); connect to the network, or put the official "
            "files there"
        ) from error
    mark.unlink()
    return made


def _labels(part: VisionDataset) -> np.ndarray:
    """(N,) int64 labels of a split, without decoding its images."""
    for attribute in LABELS:
        if hasattr(part, attribute):
            return np.asarray(getattr(part, attribute)).astype(np.int64)
    return np.array([label for _, label in part._samples], dtype=np.int64)


def _class_names(part: VisionDataset) -> Sequence[str]:
    """Names of the classes by label; empty where torchvision has none."""
    return getattr(part, "classes", None) or getattr(part, "categories", None) or []


def _tracks(parts: Sequence[VisionDataset], splits: Sequence[str]) -> np.ndarray:
    """(N,) int64 groups of GTSRB: a training file is called CLASS/TRACK_FRAME.ppm, with tracks numbered in a class."""
    found: dict[str, int] = {}
    keys = [
        f"{label} {Path(path).stem.split('_')[0]}" if split == "train" else path
        for part, split in zip(parts, splits, strict=True)
        for path, label in part._samples
    ]
    return np.array([found.setdefault(key, len(found)) for key in keys], dtype=np.int64)


def _image(part: VisionDataset, number: int, place: str, wanted: int) -> Image.Image:
    try:
        return part[number][0].convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{place} is no readable image; delete the folder to get it again") from error


def _digest(folder: Path, name: str, splits: Sequence[str], labels: np.ndarray) -> str:
    """SHA-256 of the choice, the labels, and every unpacked file of the folder with its name."""
    digest = hashlib.sha256(f"{name} {' '.join(splits)}\n".encode() + labels.astype("<i8").tobytes())
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix not in PACKED)
    with ThreadPoolExecutor() as pool:  # reading and hashing release the interpreter's lock
        for file, part in zip(files, pool.map(_content, files), strict=True):
            digest.update(f"{file.relative_to(folder).as_posix()} {part}\n".encode())
    return digest.hexdigest()


def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
