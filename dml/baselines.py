"""Retrieval without learning: what a network has to be well above before its figures mean anything."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dml.datasets import Split
from dml.retrieval import Gallery, Queries, per_query
from dml.sampling import evenly, to_float

QUERIES = 2_000  # at most, evenly spaced; the gallery is the whole split
CHUNK = 256  # pictures described at a time
SIDE = 16  # of the picture that is compared by its pixels
BINS = 8  # of the histogram, a channel


def pixels(images: Tensor) -> Tensor:
    """Unit vectors (B, 768): the pictures (B, 3, H, W) at 16 x 16, less their mean."""
    small = F.adaptive_avg_pool2d(images, SIDE).flatten(1)
    return F.normalize(small - small.mean(1, keepdim=True))


def colour_histogram(images: Tensor) -> Tensor:
    """Unit vectors (B, 512): roots of the shares of pixels in 8 x 8 x 8 cells of RGB, whose inner product is
    Bhattacharyya's coefficient of the two histograms.
    """
    level = (images * BINS).long().clamp_max(BINS - 1)
    cell = ((level[:, 0] * BINS + level[:, 1]) * BINS + level[:, 2]).flatten(1)
    counts = torch.zeros(len(images), BINS**3, device=images.device)
    counts.scatter_add_(1, cell, torch.ones_like(cell, dtype=counts.dtype))
    return F.normalize(counts.sqrt())


def baselines(split: Split) -> dict[str, dict[str, float]]:
    """R@1 and MAP@R of a split whose images are described by pixels and by colours alone.

    Returns:
        ``{"pixels": {"r1", "map_r"}, "colour histogram": {"r1", "map_r"}}``.
    """
    labels = torch.from_numpy(split.labels.copy())
    own = torch.from_numpy(evenly(QUERIES, len(split)))
    found = {}
    for name, describe in (("pixels", pixels), ("colour histogram", colour_histogram)):
        parts = [describe(to_float(split.images[row : row + CHUNK])) for row in range(0, len(split), CHUNK)]
        described = torch.cat(parts)
        outcome = per_query(described[own], Queries(labels[own], own), Gallery(described, labels))
        found[name] = {"r1": float(outcome.r1.float().mean()), "map_r": float(outcome.map_r.mean())}
    return found
