"""Controls: retrieval without learning, as embedders. A model that is not well above them has learned little.

All compute in float64: their distances are small beside 1, where float32 would be too coarse.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dml.models.linear_metric import pooled
from dml.models.palette import Palette
from dml.retrieval.gallery import Matches
from dml.retrieval.index import Search

AT_ONCE = 8  # right items whose distances to all others are computed at a time
SLACK = 1e-12  # similarity that a certificate gives up for rounding; near-ties of float64 are 1.8e-15


def _on_a_device(control: nn.Module) -> None:
    """Give a control without weights a buffer, so that it can be moved to a GPU and says where it is."""
    control.register_buffer("place", torch.empty(0), persistent=False)


class PooledPixels(nn.Module):
    """The pixels of an image, averaged in boxes: images (B, 3, H, W) -> unit vectors (B, 3 * side**2 + 1).

    A large constant is appended before the vectors are scaled to unit length, so that similarity ranks as the Euclidean
    distance between pooled images does.

    Args:
        side: of the pooled image; it must divide the image's sides.
    """

    constant = 1e3

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        _on_a_device(self)

    def pooled(self, images: Tensor) -> Tensor:
        """Return the averages of the boxes, less .5: (B, 3 * side**2) float64.

        Raises:
            ValueError: the side does not divide those of the images, which the certificate assumes.
        """
        height, width = images.shape[2:]
        if height % self.side or width % self.side:
            raise ValueError(f"side is {self.side}; it must divide the sides of the images, {height} and {width}")
        return pooled(images, self.side)

    def forward(self, images: Tensor) -> Tensor:
        """Return unit embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""
        return F.normalize(F.pad(self.pooled(images), (0, 1), value=self.constant), dim=1)

    def certify(self, search: Search, rows: np.ndarray, norm: Literal["linf", "l2"], eps: float) -> Tensor:
        """Return (B,) bool, see :func:`certificate`."""
        return certificate(search, rows, norm, eps)


@torch.no_grad()
def certificate(search: Search, rows: np.ndarray, norm: Literal["linf", "l2"], eps: float) -> Tensor:
    """Return (B,) bool: the queries that no perturbation in the ball breaks, by proof.

    Write a query as v = (q, C) with its pooled pixels q and the constant C, and items as unit vectors u. Scaling a
    query does not change its ranking, so v is compared as it is, and v . (u_p - u_n) is linear in q. A perturbation
    within eps changes each average by at most eps in l-inf (or their l2 length by at most eps / k, for boxes of k**2
    pixels). A query survives if some right item p has, for all wrong items n,
    ``v . (u_p - u_n) > eps * |u_p - u_n|`` without the last coordinate, in the l1 norm (for l2: over k, in the l2
    norm). Up to terms of order 1 / C^2 this is ``|q - n|^2 - |q - p|^2 > 2 eps |n - p|``.

    Args:
        search: of a :class:`PooledPixels`.
        rows: numbers of the B queries.
        norm: of the ball.
        eps: its radius, pixel units.
    """
    model, gallery = search.model, search.gallery
    images, queries = search.images(rows), search.queries(rows)
    vectors = F.pad(model.pooled(images), (0, 1), value=model.constant)
    # The largest length that a perturbed query can have turns the slack of a similarity into one of these products.
    slack = SLACK * (model.constant**2 + 0.25 * (vectors.shape[1] - 1)) ** 0.5
    scale = eps if norm == "linf" else eps * model.side / (images.shape[2] * images.shape[3]) ** 0.5
    order, points = 1.0 if norm == "linf" else 2.0, gallery.embeddings[:, :-1].contiguous()
    matches = Matches.of(queries, gallery)
    safe = torch.zeros(len(queries), dtype=torch.bool, device=vectors.device)
    for place, vector in enumerate(vectors):
        similarity, wrong = gallery.embeddings @ vector, matches.wrong[place]
        # Only a right item that is ahead of every wrong one can prove anything: mostly none, or a few.
        ahead = (matches.right[place] & (similarity > similarity[wrong].amax() + slack)).nonzero().squeeze(1)
        for items in ahead[similarity[ahead].argsort(descending=True)].split(AT_ONCE):
            apart = torch.cdist(points[items], points[wrong], p=order, compute_mode="donot_use_mm_for_euclid_dist")
            rival = (similarity[wrong] + scale * apart).amax(1)
            if bool((similarity[items] > rival + slack).any()):
                safe[place] = True
                break
    return safe


class Pixels8(PooledPixels):
    """Pixels of the image at 8 x 8."""

    def __init__(self) -> None:
        super().__init__(8)


class Pixels16(PooledPixels):
    """Pixels of the image at 16 x 16."""

    def __init__(self) -> None:
        super().__init__(16)


class ColourHistogram(nn.Module):
    """Square roots of the shares of pixels in 8 x 8 x 8 cells of RGB: images -> unit vectors (B, 512).

    Their inner product is Bhattacharyya's coefficient of two histograms. The histogram is piecewise constant. Its
    gradient is replaced by that of a histogram in which each pixel is shared among neighbouring cells (Athalye et al.
    2018, BPDA), or attacks by gradients would see nothing.
    """

    bins = 8  # per channel

    def __init__(self) -> None:
        super().__init__()
        _on_a_device(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return unit embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""
        images = images.double()
        hard = F.normalize(self._shares(images.detach()).sqrt(), dim=1)
        if not (torch.is_grad_enabled() and images.requires_grad):
            return hard
        soft = F.normalize((self._soft_shares(images) + 1e-6).sqrt(), dim=1)  # bounds the gradient of an empty cell
        return soft + (hard - soft).detach()

    def _shares(self, images: Tensor) -> Tensor:
        level = (images * self.bins).long().clamp(0, self.bins - 1)
        cell = ((level[:, 0] * self.bins + level[:, 1]) * self.bins + level[:, 2]).flatten(1)
        counts = torch.zeros(len(images), self.bins**3, dtype=images.dtype, device=images.device)
        return counts.scatter_add_(1, cell, torch.ones_like(cell, dtype=counts.dtype)) / cell.shape[1]

    def _soft_shares(self, images: Tensor) -> Tensor:
        centres = torch.arange(self.bins, dtype=images.dtype, device=images.device) + 0.5
        apart = images.flatten(2)[..., None] * self.bins - centres  # (B, 3, pixels, bins), in bins
        weights = (-2 * apart.square()).softmax(-1)  # a Gaussian of half a bin
        red, green, blue = weights.unbind(1)
        both = (red[..., None] * green[..., None, :]).flatten(2)
        return (both.transpose(1, 2) @ blue).flatten(1) / both.shape[1]


class SoftHistogram(nn.Module):
    """The colours of a :class:`dml.models.palette.Palette`: images -> unit vectors (B, 216).

    A small perturbation moves it little, so it withstands some attacks without any training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.palette = Palette().double()

    def forward(self, images: Tensor) -> Tensor:
        """Return unit embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""
        return F.normalize(self.palette(2 * images.double() - 1), dim=1)
