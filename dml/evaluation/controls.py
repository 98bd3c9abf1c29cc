"""Retrieval without learning: what a network has to be well above before its figures mean anything."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dml.attacks.balls import radius_text
from dml.data import Split
from dml.data.sampling import evenly, sample_rows, to_float
from dml.evaluation.suites import Suite
from dml.models.embedder import Palette, best_device
from dml.retrieval.index import Gallery, Queries, Search, per_query

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


class SoftHistogram(nn.Module):
    """Pictures -> the colours of an untrained :class:`dml.models.embedder.Palette`, unit vectors (B, 216).

    A small perturbation moves it little, so it withstands some attacks though nothing was trained to. What a robust
    model is worth is what it keeps beyond that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.palette = Palette()

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.palette.roots(2 * images - 1), dim=1)


def attacked_histogram(split: Split, suite: Suite, *, seed: int) -> dict[str, float | dict[str, float]]:
    """What :class:`SoftHistogram` retrieves, and what a suite leaves of it.

    Args:
        split: that is searched.
        suite: of attacks in the l-inf ball; of a smaller split all pictures are attacked.
        seed: of the choice of queries, the same as for trained models, and of the attacks.

    Returns:
        ``r1`` and ``map_r`` over all pictures, the number of attacked ``queries``, and ``left``: radius -> R@1.
    """
    search = Search.over(SoftHistogram().eval().to(best_device()), split)
    natural = search.natural()
    rows = sample_rows(min(suite.queries, len(split)), len(split), seed)
    outcomes = suite.evaluate(search, rows, seed=seed, report=lambda line: None).outcomes
    left = outcomes[outcomes["attack"] == "worst"].groupby("eps")["r1"].mean()
    return {
        "r1": float(natural.r1.float().mean()),
        "map_r": float(natural.map_r.mean()),
        "queries": len(rows),
        "left": {radius_text(eps): float(share) for eps, share in left.items()},
    }
