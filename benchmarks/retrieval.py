"""Exact R@1, R-precision and MAP@R against pytorch-metric-learning's calculator: values, times and their ratio.

Ours decides in float64 and counts near-ties against the defender, so values may differ by a few near-ties.
"""

import time

import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from dml.retrieval.gallery import Gallery, Queries
from dml.retrieval.metrics import per_query

SIZES = ((2000, 128), (5924, 512))


def main() -> None:
    """Print one line per size."""
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, k="max_bin_count", knn_func=CustomKNN(CosineSimilarity()))
    print(f"{'gallery':>14}{'ours, s':>10}{'peer, s':>10}{'peer / ours':>13}{'largest difference':>20}")
    for count, dimension in SIZES:
        draw = torch.Generator().manual_seed(0)
        labels, rows = torch.arange(count) % 100, torch.arange(count)
        centres = torch.randn(100, dimension, generator=draw)
        embeddings = torch.nn.functional.normalize(
            centres[labels] + 3 * torch.randn(count, dimension, generator=draw), dim=1
        )
        start = time.perf_counter()
        ours = per_query(embeddings, Queries(labels, rows, rows), Gallery(embeddings, labels))
        own_time = time.perf_counter() - start
        start = time.perf_counter()
        peer = calculator.get_accuracy(embeddings, labels)
        peer_time = time.perf_counter() - start
        values = [float(values.double().mean()) for values in ours]
        difference = max(abs(value - peer[name]) for value, name in zip(values, names, strict=True))
        size = f"{count}x{dimension}"
        print(f"{size:>14}{own_time:10.2f}{peer_time:10.2f}{peer_time / own_time:13.1f}{difference:20.1e}")


if __name__ == "__main__":
    main()
