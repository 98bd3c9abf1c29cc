"""Exact R@1, R-precision and MAP@R against what one would write, and against pytorch-metric-learning's calculator.

The bare search is a matmul and a topk in float32, a chunk of queries at a time. The calculator uses its matmul search,
in batches of the same size, and faiss where that is installed. Ours decides in float64 and counts near-ties against the
defender, so averages may differ by a few near-ties. Memory is what a search adds at its peak to what its process held
before; each search has a new process.

    python -m benchmarks.retrieval --sizes 5924:100 60502:11316
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.measure import apart, held, numbers, peak
from dml.retrieval.gallery import Gallery, Queries
from dml.retrieval.metrics import per_query

SIZES = ((5_924, 100), (20_000, 1_000), (60_502, 11_316))  # images and classes; the first and last are CUB's and SOP's
CHUNK = 256  # queries at a time, as in dml.retrieval.metrics
NAMES = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
Search = Callable[[Tensor, Tensor], list[float]]  # embeddings (N, D) of unit length, labels (N,) -> averages by NAMES


def ours(embeddings: Tensor, labels: Tensor) -> list[float]:
    """Measure with the library."""
    rows = torch.arange(len(labels))
    found = per_query(embeddings, Queries(labels, rows, rows), Gallery(embeddings, labels))
    return [float(values.double().mean()) for values in found]


def bare(embeddings: Tensor, labels: Tensor) -> list[float]:
    """Measure with a matmul and a topk, as a script would."""
    counts = labels.bincount() - 1
    place = torch.arange(1, int(counts.max()) + 1)
    found = []
    for rows in torch.arange(len(labels)).split(CHUNK):
        similarity = embeddings[rows] @ embeddings.T
        similarity[torch.arange(len(rows)), rows] = -torch.inf
        total = counts[labels[rows]][:, None]
        nearest = similarity.topk(len(place), dim=1).indices
        hit = (labels[nearest] == labels[rows][:, None]) & (place <= total)
        precision = hit.cumsum(1) / place * hit
        found.append(torch.stack([hit[:, 0].double(), (hit / total).sum(1), (precision / total).sum(1)]))
    return torch.cat(found, dim=1).mean(1).tolist()


def calculator(search: Callable) -> Search:
    """Return pytorch-metric-learning's calculator over one of its searches."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    accuracy = AccuracyCalculator(include=NAMES, k="max_bin_count", knn_func=search)

    def measure(embeddings: Tensor, labels: Tensor) -> list[float]:
        values = accuracy.get_accuracy(embeddings, labels)
        return [values[name] for name in NAMES]

    return measure


def pml() -> Search:
    """Return the calculator over a matmul and a topk."""
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.inference import CustomKNN

    return calculator(CustomKNN(CosineSimilarity(), batch_size=CHUNK))


def faiss() -> Search:
    """Return the calculator over an exact index of faiss."""
    from faiss import IndexFlatIP
    from pytorch_metric_learning.utils.inference import FaissKNN

    return calculator(FaissKNN(index_init_fn=IndexFlatIP))


SEARCHES: dict[str, Callable[[], Search]] = {"ours": lambda: ours, "bare": lambda: bare, "pml": pml, "pml faiss": faiss}


def drawn(items: int, classes: int, dimension: int) -> tuple[Tensor, Tensor]:
    """Return random embeddings (N, D) that cluster by class, and labels (N,)."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(items) % classes
    embeddings = torch.randn(classes, dimension, generator=draw)[labels]
    embeddings += 3 * torch.randn(items, dimension, generator=draw)
    return torch.nn.functional.normalize(embeddings, dim=1), labels


def one(name: str, items: int, classes: int, dimension: int) -> None:
    """Print seconds, megabytes and averages of one search as JSON."""
    search = SEARCHES[name]()
    search(*drawn(100, 10, dimension))  # imports, and threads
    given = drawn(items, classes, dimension)
    before, start = held(), time.perf_counter()
    values = search(*given)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, peak() - before, values]))


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Print a line per size and search; return the ratios of our time to theirs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=numbers, default=SIZES, help="images:classes")
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts")
    parser.add_argument("--one", nargs=3, metavar=("SEARCH", "IMAGES", "CLASSES"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(words)
    if chosen.one:
        name, items, classes = chosen.one
        one(name, int(items), int(classes), chosen.dimension)
        return {}
    names = list(SEARCHES)
    if importlib.util.find_spec("faiss") is None:
        names.remove("pml faiss")
        print("faiss is not installed: its search is left out")
    print(f"{torch.get_num_threads()} threads, median of {chosen.rounds}")
    columns = {"gallery": 14, "search": 12, "seconds": 10, "MB": 8, "ours / it": 11, "R@1": 8, "MAP@R": 8}
    print("".join(f"{name:>{width}}" for name, width in columns.items()), f"{'largest difference':>20}", sep="")
    ratios = {}
    for items, classes in chosen.sizes:
        options = ("--dimension", str(chosen.dimension), "--one")
        runs: dict[str, list] = {name: [] for name in names}
        for _ in range(chosen.rounds):  # in turns, so that a slow minute of the machine hits all alike
            for name in names:
                runs[name].append(json.loads(apart("retrieval", *options, name, str(items), str(classes))))
        seconds = {name: statistics.median(run[0] for run in found) for name, found in runs.items()}
        for name, found in runs.items():
            _, memory, values = found[0]
            difference = max(abs(one - other) for one, other in zip(values, runs["ours"][0][2], strict=True))
            ratio = seconds["ours"] / seconds[name]
            print(
                f"{f'{items}x{chosen.dimension}':>14}{name:>12}{seconds[name]:10.2f}{memory:8.0f}{ratio:11.2f}"
                f"{values[0]:8.3f}{values[2]:8.3f}{difference:20.1e}",
                flush=True,
            )
            if name != "ours":
                ratios[f"{items} images, ours / {name}"] = ratio
    return ratios


if __name__ == "__main__":
    main()
