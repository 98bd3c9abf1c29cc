"""Datasets, by the word that params.yaml uses for them. A new one is one file and one line here."""

from collections.abc import Callable

from dml.datasets.base import Dataset, DatasetError, Source, Split, load
from dml.datasets.folder import read_folder
from dml.datasets.glyphs import read_glyphs
from dml.datasets.prepare import prepare

SOURCES: dict[str, Callable[..., Source]] = {"glyphs": read_glyphs, "folder": read_folder}

__all__ = ["SOURCES", "Dataset", "DatasetError", "Source", "Split", "load", "prepare"]
