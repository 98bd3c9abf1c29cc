"""CUB200-2011: 11,788 photographs of 200 species of bird (Wah et al. 2011)."""

from pathlib import Path

import pandas as pd

from dml.data.base import DatasetError, Source
from dml.data.sources import archives
from dml.data.sources.benchmark import Benchmark, Remote, missing, source

CUB200 = Benchmark(
    name="cub200",
    counts=(100, 5_864, 100, 5_924),
    files=(
        Remote(
            "CUB_200_2011.tgz",
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "md5:97eceeb196236b17998738112f37df78",
            "1.1 GB",
        ),
    ),
    help="CUB_200_2011.tgz is at https://data.caltech.edu/records/65de6-vp158",
    terms="For non-commercial research and education; the photographs belong to their photographers.",
)


def read_cub200(folder: Path, *, counts: tuple[int, int, int, int] = CUB200.counts) -> Source:
    """CUB200-2011, the first half of the classes for training and the second for testing.

    Reads ``CUB_200_2011.tgz`` or the folder ``CUB_200_2011``.

    Args:
        folder: that holds one of the two.
        counts: expected, see :class:`dml.data.sources.benchmark.Benchmark`.

    Raises:
        DatasetError: the archive is missing or incomplete, or its lists disagree.
    """
    tree = archives.find(folder, "CUB_200_2011", "CUB_200_2011")
    if tree is None:
        raise missing(CUB200, folder, "CUB_200_2011.tgz and no folder CUB_200_2011")
    texts = {
        name: content.decode() for name, content in tree.stream(["images.txt", "image_class_labels.txt", "classes.txt"])
    }
    lists = {}
    for name in ("images.txt", "image_class_labels.txt", "classes.txt"):
        if name not in texts:
            raise DatasetError(f"{tree.place} lacks CUB_200_2011/{name}; it is incomplete, get it again")
        rows = [line.split(" ", 1) for line in texts[name].splitlines() if line.strip()]
        if any(len(row) != 2 or not row[0].isdigit() for row in rows):
            raise DatasetError(f"{tree.place}: {name} must have lines of a number and a word")
        lists[name] = {int(number): word.strip() for number, word in rows}
    images, labels, classes = lists.values()
    if set(images) != set(labels):
        raise DatasetError(f"{tree.place}: images.txt and image_class_labels.txt do not list the same images")
    table = pd.DataFrame({"path": pd.Series(images), "label": pd.Series(labels).astype(int) - 1})
    folders = table["path"].str.extract(r"^(\d+)\.", expand=False).astype(float)
    wrong = table[folders.to_numpy() != table["label"].to_numpy() + 1]
    if not wrong.empty:
        path, label = wrong.iloc[0]
        raise DatasetError(f"{tree.place}: {path} has label {label + 1} in image_class_labels.txt; the two disagree")
    names = [classes.get(number, str(number)).split(".")[-1].replace("_", " ") for number in range(1, max(classes) + 1)]
    table["path"], table["tree"] = "images/" + table["path"], 0
    return source(CUB200, tuple(counts), table, names, [tree])
