"""Stanford Online Products: 120,053 photographs of 22,634 products (Oh Song et al. 2016)."""

import io
from pathlib import Path

import pandas as pd

from dml.data.base import DatasetError, Source
from dml.data.sources import archives
from dml.data.sources.benchmark import Benchmark, Remote, missing, source

SOP = Benchmark(
    name="sop",
    counts=(11_318, 59_551, 11_316, 60_502),
    files=(
        Remote(
            "Stanford_Online_Products.zip",
            "http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
            "md5:7f73d41a2f44250d4779881525aea32e",
            "2.9 GB",
        ),
    ),
    help="Stanford_Online_Products.zip is linked from https://cvgl.stanford.edu/projects/lifted_struct/",
    terms="For research; the images come from public auctions and belong to their owners.",
)
COLUMNS = ["image_id", "class_id", "super_class_id", "path"]


def read_sop(folder: Path, *, counts: tuple[int, int, int, int] = SOP.counts) -> Source:
    """Stanford Online Products, split as Ebay_train.txt and Ebay_test.txt say.

    Reads ``Stanford_Online_Products.zip`` or the folder of that name.

    Args:
        folder: that holds one of the two.
        counts: expected, see :class:`dml.data.sources.benchmark.Benchmark`.

    Raises:
        DatasetError: the archive is missing or incomplete, or its lists disagree.
    """
    tree = archives.find(folder, "Stanford_Online_Products", "Stanford_Online_Products")
    if tree is None:
        raise missing(SOP, folder, "Stanford_Online_Products.zip and no folder of that name")
    halves = []
    for name in ("Ebay_train.txt", "Ebay_test.txt"):
        half = pd.read_csv(io.BytesIO(tree.read(name)), sep=r"\s+")
        if list(half.columns) != COLUMNS:
            raise DatasetError(f"{tree.place}: {name} must have the columns {', '.join(COLUMNS)}")
        halves.append(half)
    train, test = (set(half["class_id"]) for half in halves)
    if train & test:
        raise DatasetError(f"{tree.place}: class {min(train & test)} is in Ebay_train.txt and in Ebay_test.txt")
    # The classes of the training list come first, whatever their numbers.
    order = {number: label for label, number in enumerate([*sorted(train), *sorted(test)])}
    table = pd.concat(halves, ignore_index=True)
    kinds = table["path"].str.extract(r"^(.+)_final/", expand=False)
    wrong = table[kinds.isna()]
    if not wrong.empty:
        raise DatasetError(f"{tree.place}: {wrong['path'].iloc[0]} lies in no folder of a product category")
    table["label"] = table["class_id"].map(order)
    names = (kinds.str.replace("_", " ") + " " + table["class_id"].astype(str)).groupby(table["label"]).first()
    return source(SOP, tuple(counts), table[["path", "label"]].assign(tree=0), names.tolist(), [tree])
