"""Your own images: one folder per class, or a ``labels.csv`` of ``path,label[,class_name,group,query,train]``."""

import functools
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError

from dml.data.base import DatasetError, Source

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
OPTIONAL = ("group", "query", "train")  # columns of labels.csv


def read_folder(folder: Path) -> Source:
    """A dataset from ``folder/labels.csv`` if there is one, else from one sub-folder per class.

    Rows are sorted by label, within a label by path. Sub-folders become classes in the order of their names. In a
    labels.csv the label decides the order, so it can place chosen classes in the test half. Images are turned as their
    EXIF orientation says. Three columns are optional:

    * ``group``: any value, such as a track, burst or camera. Images of one class with the same value form a group, and
      a query never counts the others of its group, as in re-identification protocols. An image with an empty value
      forms its own group.
    * ``query``: 1 makes an image of a test class a query, 0 a gallery item. Without the column every image is both.
    * ``train``: 1 for all images of a training class, 0 for those of a test class. Training classes then come first,
      whatever their labels.

    Raises:
        DatasetError: the folder is missing or empty, or a file is missing, is not an image or cannot be read.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a folder; put the images there, one sub-folder per class")
    table = _from_csv(folder) if (folder / "labels.csv").exists() else _from_folders(folder)
    if table.empty:
        raise DatasetError(f"{folder} holds no image; put one sub-folder per class there, or a labels.csv")
    order = ["label"] if "train" not in table else ["tested", "label"]
    table = table.assign(tested=1 - table["train"]) if "train" in table else table
    table = table.sort_values([*order, "path"], kind="stable", ignore_index=True)
    labels, known = pd.factorize(table["label"])  # in the order of the rows
    names = table.groupby("label")["class_name"].first()[known]
    paths = [folder / path for path in table["path"]]
    return Source(
        class_names=[str(name) for name in names],
        labels=labels.astype(np.int64),
        tasks=lambda rows: ((row, functools.partial(_open, paths[row])) for row in rows.tolist()),
        digest=_digest(table.drop(columns="tested", errors="ignore"), paths),
        train_classes=int(table.loc[table["train"] == 1, "label"].nunique()) if "train" in table else None,
        parallel=True,
        groups=_groups(table) if "group" in table else None,
        queries=table["query"].to_numpy().astype(bool) if "query" in table else None,
    )


def _from_folders(folder: Path) -> pd.DataFrame:
    rows = []
    classes = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    for label, child in enumerate(classes):
        for file in sorted(child.rglob("*")):
            if not file.is_file() or file.name.startswith("."):
                continue
            if file.suffix.lower() not in ENDINGS:
                raise DatasetError(f"{file} is not an image; a class folder may hold image files only")
            rows.append((file.relative_to(folder).as_posix(), label, child.name))
    return pd.DataFrame(rows, columns=["path", "label", "class_name"])


def _from_csv(folder: Path) -> pd.DataFrame:
    file = folder / "labels.csv"
    try:
        text = dict.fromkeys(("path", "class_name", "group"), str)
        table = pd.read_csv(file, keep_default_na=False, dtype=text, skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        told = " ".join(str(error).split())
        raise DatasetError(f"{file} is not a table of comma-separated values: {told}") from error
    missing = {"path", "label"} - set(table.columns)
    if missing:
        raise DatasetError(f"{file} lacks the column {sorted(missing)[0]!r}; its columns are path,label[,class_name]")
    if table.empty:
        raise DatasetError(f"{file} lists no image; give each image a line path,label[,class_name]")
    if not pd.api.types.is_integer_dtype(table["label"]):
        raise DatasetError(f"{file} has a label that is not an integer; labels count classes from 0")
    if (least := int(table["label"].min())) < 0:
        raise DatasetError(f"{file} has the label {least}; labels count classes from 0, and junk images are left out")
    again = table["path"].map(os.path.normpath).duplicated()
    if again.any():
        raise DatasetError(f"{file} lists {table.loc[again, 'path'].iloc[0]!r} twice")
    for name, meaning in (("query", "queries and 0 for the gallery"), ("train", "training and 0 for test classes")):
        if name in table:
            table[name] = _ones(table[name], f"{file} has the {name}", f"the column must hold 1 for {meaning}")
    if "train" in table:
        both = table.groupby("label")["train"].nunique() > 1
        if both.any():
            raise DatasetError(f"{file} has images of label {both.idxmax()} in training and test; a class is in one")
        if table["train"].nunique() < 2:
            raise DatasetError(
                f"{file} has no {'test' if table['train'].all() else 'training'} class in its column train"
            )
    if "class_name" not in table.columns:
        table["class_name"] = table["label"].astype(str)
    for path in table["path"]:
        try:
            target = (folder / path).resolve()
            exists = target.is_file()
        except (OSError, ValueError) as error:  # too long, or with a zero byte
            raise DatasetError(f"{file} lists {_short(path)}, which is no path of a file") from error
        if not target.is_relative_to(folder.resolve()):
            raise DatasetError(f"{file} lists {_short(path)}, which lies outside {folder}")
        if not exists:
            raise DatasetError(f"{file} lists {_short(path)}, which does not exist")
    return table[["path", "label", "class_name", *(column for column in OPTIONAL if column in table)]]


def _ones(column: pd.Series, has: str, should: str) -> pd.Series:
    """A column of zeros and ones as integers; raises DatasetError where another value stands."""
    values = pd.to_numeric(column, errors="coerce")
    wrong = column[~values.isin([0, 1])]
    if len(wrong):
        raise DatasetError(f"{has} {str(wrong.iloc[0])[:80]!r}; {should}")
    return values.astype(int)


def _short(path: str) -> str:
    """A path in one line, since a quote that is not closed makes one of many lines."""
    return path if path.isprintable() and len(path) < 200 else f"{path[:80]!r}..."


def _groups(table: pd.DataFrame) -> np.ndarray:
    """(N,) numbers from 0, equal for images of one label with the same group."""
    named = table["label"].astype(str) + ":" + table["group"]
    return pd.factorize(named.where(table["group"] != "", "/" + table["path"]))[0].astype(np.int64)


def _open(file: Path, wanted: int) -> Image.Image:
    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would cut their values at 255, not scale them
                raise DatasetError(f"{file} has pixels of mode {image.mode}; convert it to 8 bits per channel")
            image.draft(None, (2 * wanted, 2 * wanted))  # decodes a large JPEG at a fraction of its size
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{file} is no readable image; replace it or leave it out") from error


def _digest(table: pd.DataFrame, paths: list[Path]) -> str:
    digest = hashlib.sha256(table.to_csv(index=False).encode())
    with ThreadPoolExecutor() as pool:  # reading and hashing release the interpreter's lock
        for part in pool.map(lambda path: hashlib.sha256(path.read_bytes()).digest(), paths):
            digest.update(part)
    return digest.hexdigest()
