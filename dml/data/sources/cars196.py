"""Cars196: 16,185 photographs of 196 models of car (Krause et al. 2013), in either of its two layouts."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from dml.data.base import DatasetError, Source
from dml.data.sources import archives
from dml.data.sources.benchmark import Benchmark, Remote, missing, source

CARS196 = Benchmark(
    name="cars196",
    counts=(98, 8_054, 98, 8_131),
    files=(
        Remote("car_ims.tgz", None, "md5:d5c8f0aa497503f355e17dc7886c3f14", "1.8 GB"),
        Remote("cars_annos.mat", None, "md5:b407c6086d669747186bd1d764ff9dbc", "0.5 MB"),
    ),
    help=(
        "the publisher's server is gone; car_ims.tgz with cars_annos.mat, or cars_train.tgz, cars_test.tgz, "
        "car_devkit.tgz and cars_test_annos_withlabels.mat, can be found at mirrors of Stanford Cars"
    ),
    terms="For non-commercial research; no further licence came with it.",
)


def read_cars196(folder: Path, *, counts: tuple[int, int, int, int] = CARS196.counts) -> Source:
    """Cars196, the first half of the classes for training and the second for testing.

    The official split by image is not used.

    Reads ``car_ims.tgz`` (or the folder ``car_ims``) with ``cars_annos.mat``, or else ``cars_train.tgz``,
    ``cars_test.tgz`` and ``car_devkit.tgz`` (or the folders) with ``cars_test_annos_withlabels.mat``.

    Args:
        folder: that holds the files.
        counts: expected, see :class:`dml.data.sources.benchmark.Benchmark`.

    Raises:
        DatasetError: a file is missing or incomplete, or the annotations cannot be read.
    """
    whole = archives.find(folder, "car_ims", "car_ims")
    if whole is not None:
        if not (folder / "cars_annos.mat").exists():
            raise missing(CARS196, folder, "cars_annos.mat beside car_ims")
        notes = _mat((folder / "cars_annos.mat").read_bytes(), folder / "cars_annos.mat")
        table = _table(notes, "relative_im_path", folder / "cars_annos.mat").assign(tree=0)
        return source(CARS196, tuple(counts), table, _names(notes, folder / "cars_annos.mat"), [whole])
    halves = [archives.find(folder, f"cars_{half}", f"cars_{half}") for half in ("train", "test")]
    kit = archives.find(folder, "devkit", "car_devkit")
    for what, found in (("car_ims.tgz and no cars_train.tgz", halves[0]), ("cars_test.tgz", halves[1])):
        if found is None:
            raise missing(CARS196, folder, what)
    if kit is None:
        raise missing(CARS196, folder, "car_devkit.tgz")
    labelled = folder / "cars_test_annos_withlabels.mat"
    if not labelled.exists():
        raise missing(CARS196, folder, "cars_test_annos_withlabels.mat (the devkit has no labels of the test images)")
    notes = [_mat(kit.read("cars_train_annos.mat"), kit.place), _mat(labelled.read_bytes(), labelled)]
    tables = [
        _table(note, "fname", place).assign(tree=number)
        for number, (note, place) in enumerate(zip(notes, (kit.place, labelled), strict=True))
    ]
    names = _names(_mat(kit.read("cars_meta.mat"), kit.place), kit.place)
    return source(CARS196, tuple(counts), pd.concat(tables, ignore_index=True), names, halves)


def _mat(content: bytes, place: Path) -> dict:
    try:
        return loadmat(io.BytesIO(content), squeeze_me=True)
    except (ValueError, TypeError, OSError, KeyError, IndexError, NotImplementedError, MatReadError) as error:
        raise DatasetError(f"{place} holds no annotations in MATLAB's format; get it again") from error


def _table(notes: dict, path: str, place: Path) -> pd.DataFrame:
    """``path, label`` of a list of annotations; paths are relative to the image folder."""
    try:
        rows = np.atleast_1d(notes["annotations"])
        names, classes = rows[path], rows["class"]
    except (KeyError, ValueError) as error:
        raise DatasetError(f"{place} lacks the list `annotations` with {path} and class") from error
    return pd.DataFrame({"path": [Path(str(name)).name for name in names], "label": classes.astype(int) - 1})


def _names(notes: dict, place: Path) -> list[str]:
    if "class_names" not in notes:
        raise DatasetError(f"{place} lacks the list `class_names`")
    return [str(name) for name in np.atleast_1d(notes["class_names"])]
