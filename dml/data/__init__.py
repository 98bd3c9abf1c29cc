"""Datasets, by the word that params.yaml uses for them. A new one is one file and one line here."""

from collections.abc import Callable

from dml.data.base import Dataset, DatasetError, Pictures, Source, Split, load
from dml.data.prepare import prepare
from dml.data.sources.benchmark import Benchmark
from dml.data.sources.cars196 import CARS196, read_cars196
from dml.data.sources.cub200 import CUB200, read_cub200
from dml.data.sources.folder import read_folder
from dml.data.sources.glyphs import read_glyphs
from dml.data.sources.sop import SOP, read_sop
from dml.data.unpack import unpack

SOURCES: dict[str, Callable[..., Source]] = {
    "cars196": read_cars196,
    "cub200": read_cub200,
    "folder": read_folder,
    "glyphs": read_glyphs,
    "sop": read_sop,
}
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (CUB200, CARS196, SOP)}

__all__ = [
    "BENCHMARKS",
    "SOURCES",
    "Benchmark",
    "Dataset",
    "DatasetError",
    "Pictures",
    "Source",
    "Split",
    "load",
    "prepare",
    "unpack",
]
