"""Writes near duplicates as the column ``group`` of a folder's labels.csv, and draws the pairs that were joined."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import ImageOps

from dml.common.files import atomic
from dml.data.base import DatasetError, Source
from dml.data.grouping import Found, find_groups
from dml.data.sources.folder import read_folder

SHOWN = 30  # pairs on each side of the threshold
MARK = "near-"  # what the values of the column begin with


def write_groups(folder: Path, train_fraction: float, threshold: float | None, page: Path) -> Found:
    """Find the groups of a folder, write them as the column ``group`` of its labels.csv, and draw a page.

    The table keeps its rows, their order and all other columns; a folder without one gets one. An image that is joined
    with no other has an empty value. Groups that this function wrote before are replaced.

    Args:
        folder: as the source ``folder`` reads it.
        train_fraction: see :func:`find_groups`.
        threshold: see :func:`find_groups`.
        page: PNG to write.

    Raises:
        DatasetError: the folder cannot be read, or its table has groups from elsewhere; see also :func:`find_groups`.
    """
    source = read_folder(folder)
    table, order = _table(folder, source)
    if "group" in table and not table["group"].str.fullmatch(rf"({MARK}\d+)?").all():
        raise DatasetError(f"{folder / 'labels.csv'} has groups already; remove the column group to find others")
    found = find_groups(source, train_fraction, threshold)
    sizes = np.bincount(found.groups)
    numbers = np.cumsum(sizes > 1)  # only groups of two or more count
    values = np.where(sizes[found.groups] > 1, [f"{MARK}{numbers[group]}" for group in found.groups], "")
    table["group"] = pd.Series(values, index=order)
    draw(source, found, page)
    with atomic(folder / "labels.csv") as partial:
        table.to_csv(partial, index=False, lineterminator="\n")
    return found


def _table(folder: Path, source: Source) -> tuple[pd.DataFrame, np.ndarray]:
    """The table of a folder as text, and the index of the table's row for each row of the source."""
    if (folder / "labels.csv").exists():
        table = pd.read_csv(folder / "labels.csv", dtype=str, keep_default_na=False, skipinitialspace=True)
        place = pd.Series(table.index, index=[Path(path).as_posix() for path in table["path"]])
        # read_folder binds each task to its file.
        files = [make.args[0].relative_to(folder) for _, make in source.tasks(np.arange(len(source.labels)))]
        return table, place[[file.as_posix() for file in files]].to_numpy()
    rows = [
        (file.relative_to(folder).as_posix(), str(label), name)
        for label, name in enumerate(source.class_names)
        for file in sorted((folder / name).rglob("*"), key=lambda file: file.relative_to(folder).as_posix())
        if file.is_file() and not file.name.startswith(".")
    ]
    return pd.DataFrame(rows, columns=["path", "label", "class_name"]), np.arange(len(rows))


def draw(source: Source, found: Found, file: Path) -> None:
    """Draw the pairs nearest to the threshold on both sides, of training classes alone, as a PNG."""
    columns, each = 10, SHOWN // 10
    figure, axes = plt.subplots(2 * each, columns, figsize=(16, 2 * each * 1.15 + 0.4))
    shown = [*_last(found.joined, found.ratios[0]), *[None] * max(0, SHOWN - len(found.joined))]
    shown += zip(found.apart[:SHOWN], found.ratios[1], strict=False)
    for place, axis in enumerate(axes.flat):
        axis.axis("off")
        if place < len(shown) and shown[place]:
            pair, ratio = shown[place]
            images = [np.asarray(ImageOps.fit(source.read(int(row)), (96, 96))) for row in pair]
            axis.imshow(np.concatenate(images, axis=1))
            axis.set_title(f"{'joined' if place < SHOWN else 'apart'} {ratio:.3f}", fontsize=8)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.9, 0.05, 0.25)
    figure.suptitle(f"Pairs of training classes nearest to the threshold {found.threshold:.3f}, joined and apart")
    with atomic(file) as partial:
        figure.savefig(partial, format="png", dpi=80)
    plt.close(figure)


def _last(found: np.ndarray, ratios: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
    """The joined pairs to show, the nearest to the threshold last."""
    return zip(found[-SHOWN:], ratios[-SHOWN:], strict=True)
