"""Images and labels as people have them: tensors, arrays, datasets, folders."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from dml.api.pixels import Lazy, Side, check_side, stored, to_pixels
from dml.common.files import ROOT
from dml.data.base import Source
from dml.data.sampling import evenly
from dml.data.sources.folder import read_folder

Prepare = Callable[[Any], Any]
"""An image of a folder or a dataset -> an image (3, H, W) in [0, 1], or a PIL image."""

LOOKED_AT = 8  # images of a dataset read twice, to see whether its transform is random
LARGEST = 4096  # pixels: a file is decoded at reduced size down to about this side


def memory(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the bytes of memory that this process may have; 0 where the system does not say.

    They are the machine's, or fewer where a scheduler or a container sets a limit.

    Args:
        groups: where Linux shows control groups (version 2).
        own: names the group of this process.
    """
    told = getattr(os, "sysconf_names", {})
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if "SC_PHYS_PAGES" in told else []
    if own.exists():
        group = groups / own.read_text().strip().rpartition("::/")[2]
        limits = [above / "memory.max" for above in (group, *group.parents) if above.is_relative_to(groups)]
        found += [int(text) for file in limits if file.exists() and (text := file.read_text().strip()).isdigit()]
    return min(found, default=0)


KEPT = max(2**30, memory() // 8)  # bytes of decoded images that are held; more are decoded whenever asked for


class Loaded(NamedTuple):
    """Images with what is known of them.

    Attributes:
        pixels: (N, H, W, 3) uint8, or float32 from 0 to 255.
        labels: (N,) of any kind.
        groups: (N,), or None.
        queries: (N,) bool, or None.
        files: (N,) path of each image in its folder, or None.
        group_names: (N,) group of each image as the folder's labels.csv names it, or None.
    """

    pixels: np.ndarray | Lazy
    labels: np.ndarray
    groups: np.ndarray | None = None
    queries: np.ndarray | None = None
    files: np.ndarray | None = None
    group_names: np.ndarray | None = None


def load(images: Any, labels: Any, prepare: Prepare | None = None, *, training: bool = False) -> Loaded:
    """Return images of any kind with their labels.

    Args:
        images: a float tensor or array (N, 3, H, W) in [0, 1]; a uint8 one, also as (N, H, W, 3); a dataset of pairs;
            or a folder as :func:`dml.data.sources.folder.read_folder` takes it.
        labels: (N,) of any kind; None for those of the dataset or the folder.
        prepare: applied to every image of a dataset or a folder.
        training: whether the training classes of a folder are wanted, where its labels.csv tells them from others.

    Raises:
        ValueError: images or labels cannot be used; one sentence says what would be right.
    """
    if isinstance(images, str | Path):
        images = found_at(images)
        if labels is not None:  # in which order would they be?
            raise ValueError(f"the folder {images} has labels: its sub-folders, or its labels.csv; leave labels out")
        found = _folder(images, read_folder(images), prepare, training)
    elif isinstance(images, Tensor | np.ndarray):
        if prepare is not None:
            raise ValueError("size and transform are for folders and datasets; resize a tensor or an array beforehand")
        if labels is None:
            raise ValueError("labels is missing; give one label per image")
        found = Loaded(stored(images), flat(labels, "labels"))
        if images.dtype in (np.uint8, torch.uint8) and len(found.pixels) and found.pixels.max() == 1:
            raise ValueError("images hold 8-bit numbers of 0 and 1, all but black; give uint8 from 0 to 255, or floats")
    elif hasattr(images, "__getitem__") and hasattr(images, "__len__"):
        found = _dataset(images, labels, prepare)
    else:
        raise ValueError(f"images is a {type(images).__name__}; give a tensor, an array, a dataset or a folder")
    if labels is not None:
        found = found._replace(labels=flat(labels, "labels"))
    if len(found.labels) != len(found.pixels):
        raise ValueError(f"there are {len(found.labels)} labels for {len(found.pixels)} images; give one per image")
    return found


def found_at(folder: str | Path) -> Path:
    """Return the path of a folder: in this repository if only there, as :func:`dml.load` finds models."""
    inside = ROOT / folder
    return inside if inside.is_dir() and not Path(folder).is_dir() else Path(folder)


def check_folder(folder: str | Path) -> None:
    """Raise ValueError unless there is such a folder."""
    if not found_at(folder).is_dir():
        raise ValueError(f"{folder} is not a folder; give one with a sub-folder per class, or with a labels.csv")


def check_output(folder: str | Path) -> Path:
    """Return a folder to write to, which need not be there yet; raise ValueError if it cannot be written to."""
    place = Path(folder)
    above = next(path for path in (place, *place.absolute().parents) if path.exists())
    if not above.is_dir():
        what = "a file" if place.exists() else f"below the file {above}"
        raise ValueError(f"folder is {folder}, {what}; give a folder, which need not be there yet")
    if not os.access(above, os.W_OK):
        raise ValueError(f"folder is {folder}, but {above} may not be written to; give another folder")
    return place


def cropped(resize: int, size: Side | None) -> Prepare:
    """Return what published figures of ImageNet's networks are measured with: a central square of a larger image.

    Args:
        resize: shorter side of the larger image, pixels.
        size: side of the square.

    Raises:
        ValueError: the size is not one number, or larger.
    """
    if not isinstance(size, int) or not 1 <= size <= resize:
        raise ValueError(f"resize is {resize}; it takes a size that is one number and no larger, as in --size 224")
    return Compose([Resize(resize, InterpolationMode.BICUBIC), CenterCrop(size)])


def prepared_by(size: Side | None, transform: Prepare | None) -> Prepare | None:
    """Return what images of a folder or a dataset go through, or None; see :func:`dml.api.images.splits`.

    Raises:
        ValueError: the size is no number of pixels, a transform is given as well, or it cannot be called.
    """
    check_side(size)
    if transform is not None and not callable(transform):
        raise ValueError(f"transform is a {type(transform).__name__}; give a function from a PIL image to a tensor")
    if size is None:
        return transform
    if transform is not None:
        raise ValueError("give size or transform, not both")
    return partial(_resized, size)


def _resized(size: Side, image: Any) -> Image.Image:
    """The central square of a side; or the whole image with this height and width, as persons and signatures are."""
    if not isinstance(image, Image.Image):
        raise ValueError(f"size is for PIL images; the dataset gives {type(image).__name__}, resize in its transform")
    if isinstance(size, Sequence):
        height, width = size
        return image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)


def has_training_classes(folder: Path) -> bool:
    """Whether a folder's labels.csv tells training classes from test classes."""
    table = folder / "labels.csv"
    return table.exists() and "train" in pd.read_csv(table, nrows=0, skipinitialspace=True).columns


def _folder(folder: Path, source: Source, prepare: Prepare | None, training: bool) -> Loaded:
    seen = source.train_classes or 0
    wanted = np.flatnonzero((source.labels < seen) == training if seen else np.ones(len(source.labels), bool))
    # read_folder binds each task to its file.
    files = [make.args[0].relative_to(folder).as_posix() for _, make in source.tasks(wanted)]

    def read(row: int) -> np.ndarray:
        ((_, make),) = source.tasks(wanted[[row]])
        image = make(LARGEST)
        return to_pixels(prepare(image) if prepare else image)

    names = np.array(source.class_names)
    # Names that several classes share tell none apart; the numbers mean the same in another folder, positions do not.
    unique = len(set(names)) == len(names)
    labels = names[source.labels[wanted]] if unique else _column(folder, files, "label").astype(np.int64)
    pixels = _lazy(read, len(wanted), threads=True, names=[str(folder / file) for file in files])
    named = None if source.groups is None else _group_names(folder, files)
    groups, queries = (None if part is None else part[wanted] for part in (source.groups, source.queries))
    return Loaded(pixels, labels, groups, queries, np.array(files), named)


def _group_names(folder: Path, files: list[str]) -> np.ndarray:
    """The groups of images, which two folders may share; an image without one has its own."""
    groups = zip(_column(folder, files, "group"), files, strict=True)
    return np.array([f"group {group}" if group else f"image {folder / file}" for group, file in groups])


def _column(folder: Path, files: list[str], name: str) -> np.ndarray:
    """A column of labels.csv as text, in the order of the files."""
    table = pd.read_csv(folder / "labels.csv", keep_default_na=False, dtype=str, skipinitialspace=True)
    found = dict(zip((Path(path).as_posix() for path in table["path"]), table[name], strict=True))
    return np.array([found[file] for file in files])


def _dataset(images: Any, labels: Any, prepare: Prepare | None) -> Loaded:
    if not len(images):
        raise ValueError("the dataset is empty; give one with images")

    def read(row: int) -> np.ndarray:
        item = images[row]
        image = item[0] if isinstance(item, tuple | list) else item
        if isinstance(image, str | bytes | dict | int | Path):
            raise ValueError(
                f"an item of the dataset {'is' if image is item else 'begins with'} {type(image).__name__}; it must be "
                "a pair of image and label"
            )
        return to_pixels(prepare(image) if prepare else image)

    pixels = _lazy(read, len(images))
    if labels is None:
        labels = _targets(images)
    if labels is None:
        if not isinstance(images[0], tuple | list) or len(images[0]) < 2:
            raise ValueError("the dataset gives images without labels; give labels, one per image")
        labels = [images[row][1] for row in range(len(images))]  # decodes every image once more
    return Loaded(pixels, flat(labels, "labels"))


def _targets(images: Any) -> Any:
    """Labels that a dataset holds beside its images, if its items have the same; None otherwise."""
    held = getattr(images, "targets", None)
    if held is None or len(held) != len(images) or np.ndim(held[0]):  # one-hot, or boxes
        return None
    rows = evenly(LOOKED_AT, len(images)).tolist()
    items = [images[row] for row in rows]
    same = all(isinstance(item, tuple | list) and item[1] == held[row] for row, item in zip(rows, items, strict=True))
    return held if same else None


def _lazy(
    read: Callable[[int], np.ndarray], count: int, threads: bool = False, names: Sequence[str] = ()
) -> np.ndarray | Lazy:
    first = read(0)
    if not all(np.array_equal(read(row), read(row)) for row in evenly(LOOKED_AT, count).tolist()):
        raise ValueError("the transform gives another image each time; use the one for evaluation, without randomness")
    images = Lazy(read, (count, *first.shape), threads, names)
    return images[:] if count * first.nbytes <= KEPT else images


def flat(values: Any, name: str) -> np.ndarray:
    """Return values as an array (N,); raise ValueError unless there is one per image."""
    if isinstance(values, list):  # of a dataset, which may lie on a GPU
        values = [value.item() if isinstance(value, Tensor) and not value.ndim else value for value in values]
    found = np.asarray(values.cpu() if isinstance(values, Tensor) else values)
    if found.ndim != 1:
        raise ValueError(f"{name} has shape {found.shape}; it must hold one value per image")
    return found
