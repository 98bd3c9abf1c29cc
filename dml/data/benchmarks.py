"""The published benchmarks, by the name of their source."""

from dml.data.sources.benchmark import Benchmark
from dml.data.sources.cars196 import CARS196
from dml.data.sources.cub200 import CUB200
from dml.data.sources.sop import SOP
from dml.data.sources.tiny_imagenet import TINY_IMAGENET

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (CUB200, CARS196, SOP, TINY_IMAGENET)}
