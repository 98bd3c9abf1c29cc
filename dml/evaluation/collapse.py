"""How an embedding fills its sphere. A collapsed one is hard to move, and looks robust for that reason alone."""

import torch

from dml.data.sampling import evenly
from dml.retrieval.gallery import Gallery

ITEMS = 2_000  # about how many gallery items have their distances to each other measured


@torch.no_grad()
def diagnostics(gallery: Gallery) -> dict[str, float]:
    """Return figures that reveal a collapsed embedding.

    Returns:
        ``effective_rank``: exp of the entropy of the covariance spectrum (Roy and Vetterli 2007), from 1 (all on a
        line) to the dimension; ``top_share``: share of the variance in the first direction; ``intra`` and
        ``inter``: mean Euclidean distance between items of the same and of different classes (0 to 2);
        ``ratio``: intra over inter, 0 being perfectly tight classes and 1 no classes at all.
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
    return {
        "effective_rank": float(entropy.exp()),
        "top_share": float(shares[0]),
        "intra": intra,
        "inter": inter,
        "ratio": intra / inter if inter else float("nan"),
    }
