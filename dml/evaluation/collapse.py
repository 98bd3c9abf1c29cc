"""How an embedding fills its sphere. A collapsed one is hard to move, and looks robust for that reason alone."""

import math
from collections.abc import Mapping

import torch

from dml.data.sampling import evenly
from dml.retrieval.gallery import Gallery

ITEMS = 2_000  # about how many gallery items have their distances to each other measured
LEAST_RANK = 0.05  # share of the directions after the first that a healthy embedding uses
LEAST_DISTANCE = 0.1  # mean distance between classes; half of the smallest margin of any loss in params.yaml


@torch.no_grad()
def diagnostics(gallery: Gallery) -> dict[str, float]:
    """Return figures that reveal a collapsed embedding.

    Returns:
        ``effective_rank``: exp of the entropy of the covariance spectrum (Roy and Vetterli 2007), from 1 (all on a
        line) to the dimension; ``directions``: how many tight classes span, the dimension or the number of classes less
        one, whichever is smaller; ``top_share``: share of the variance in the first direction; ``intra`` and
        ``inter``: mean Euclidean distance between items of the same and of different classes (0 to 2);
        ``ratio``: intra over inter, 0 being perfectly tight classes and 1 no classes at all. A gallery with one item
        per class has neither ``intra`` nor ``ratio``.
    """
    points = gallery.embeddings.double()
    spectrum = torch.linalg.svdvals(points - points.mean(0)).square()
    shares = spectrum / spectrum.sum().clamp_min(torch.finfo(torch.float64).tiny)
    entropy = -(shares * shares.clamp_min(1e-300).log()).sum()
    # Whole classes, evenly spaced, so that there are pairs of one class however small classes are; two at least.
    classes = gallery.labels.unique()
    chosen = classes[:: max(1, min(-(-len(points) // ITEMS), len(classes) - 1))]
    some = torch.isin(gallery.labels, chosen).nonzero().squeeze(1)
    some = some[evenly(2 * ITEMS, len(some))]  # where classes are large
    apart = torch.cdist(points[some], points[some], compute_mode="donot_use_mm_for_euclid_dist")
    same = gallery.labels[some][:, None] == gallery.labels[some]
    itself = torch.eye(len(some), dtype=torch.bool, device=points.device)
    intra, inter = float(apart[same & ~itself].mean()), float(apart[~same].mean())
    found = {
        "effective_rank": float(entropy.exp()),
        "directions": float(max(1, min(points.shape[1], len(classes) - 1))),
        "top_share": float(shares[0]),
        "intra": intra,
        "inter": inter,
        "ratio": intra / inter if inter else math.nan,
    }
    return {name: value for name, value in found.items() if not math.isnan(value)}


def why_collapsed(found: Mapping[str, float]) -> str:
    """Return why the embedding of a trained model counts as collapsed; an empty string if it does not.

    One sign suffices:

    - one line: the effective rank uses less than ``LEAST_RANK`` of the directions after the first. Classes that are
      merely tight still span all ``directions``.
    - one point: classes are less than ``LEAST_DISTANCE`` apart on average, so the loss is met nowhere. A constant
      embedding costs a triplet loss its margin, whatever the attack.

    ``ratio`` is no sign of it. Without classes retrieval is no better than chance, which the natural R@1 shows; and a
    ratio near 1 may still rank well, as pixels do where images of a class differ in light.

    The rule is about training. An untrained control may have all its embeddings in one place and still rank well.

    Args:
        found: see :func:`diagnostics`.
    """
    rank, directions = found["effective_rank"], found["directions"]
    if rank - 1 < LEAST_RANK * (directions - 1):
        return f"effective rank {rank:.1f} of {directions:.0f}"
    if found["inter"] < LEAST_DISTANCE:
        return f"classes are {found['inter']:.3f} apart"
    return ""
