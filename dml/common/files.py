"""The project's root folder, and files that are written whole or not at all."""

import json
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
COUNT = "number of columns"  # the last array of a table's file, since a damaged directory of a zip hides its last ones
# What numpy raises for an .npz that was cut short or changed: it compares every array's checksum.
DAMAGED = (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` to write a file or folder to, and rename it to ``path`` on success.

    A leftover of a killed process is removed by the next one that writes the same path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    remove(partial)
    try:
        yield partial
        if partial.is_dir():
            remove(path)
        partial.replace(path)
    finally:
        remove(partial)


def remove(path: Path) -> None:
    """Delete a file or a folder with all it holds, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, one space of indent per level.

    Raises:
        ValueError: a number is infinite or NaN, which JSON cannot hold.
    """
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_columns(path: Path, table: pd.DataFrame) -> None:
    """Write a table of numbers and strings as ``.npz``, one array per column: reading it back runs no code."""
    columns = {name: table[name].to_numpy() for name in table}
    plain = {name: values.astype(str) if values.dtype.kind == "O" else values for name, values in columns.items()}
    with atomic(path) as partial, partial.open("wb") as stream:
        np.savez(stream, **plain, **{COUNT: len(plain)})


def read_columns(path: Path) -> pd.DataFrame:
    """Read a table that :func:`write_columns` wrote.

    Raises:
        ValueError: the file is not, to the last bit, what was written.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            columns = {name: stored[name] for name in stored.files}
        if columns.pop(COUNT) != len(columns):
            raise ValueError("columns are missing")
        return pd.DataFrame(columns)
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())})") from error


def read_kept(path: Path) -> pd.DataFrame | None:
    """Return a table that an earlier process kept; None if there is none, or it is damaged, which stderr is told."""
    if not path.exists():
        return None
    try:
        return read_columns(path)
    except ValueError as error:
        print(f"{error}; what it held is done again", file=sys.stderr, flush=True)
        return None
