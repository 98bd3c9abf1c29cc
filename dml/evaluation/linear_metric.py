"""A control with a certificate that is fitted to the training classes: a linear metric on pooled pixels."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dml.common.randomness import torch_generator
from dml.data.base import Dataset, Split
from dml.evaluation.controls import PooledPixels, certificate
from dml.models.linear_metric import EPS, points_of, product, trained
from dml.retrieval.index import Search

SIDES = (8, 16)  # of the pooled images; held-out classes choose
CHECK = 40  # training steps between two looks at the held-out classes
CHECKED = 1000  # held-out queries at most


class RobustLinear(PooledPixels):
    """Pooled pixels in the metric of a matrix P: images (B, 3, H, W) -> unit vectors (B, 3 * side**2 + 1).

    P is the identity until :meth:`fit`: then this is :class:`dml.evaluation.controls.PooledPixels`.

    Args:
        side: of the pooled image; it must divide the image's sides.
        matrix: (3 * side**2, 3 * side**2), the matrix P. Its spectral norm must be 1 at most, which the slack of the
            certificate assumes; scaling P changes no ranking. None: the identity.
    """

    def __init__(self, side: int = SIDES[0], matrix: Tensor | None = None) -> None:
        super().__init__(side)
        chosen = torch.eye(3 * side**2) if matrix is None else matrix
        self.register_buffer("matrix", chosen.double())

    def forward(self, images: Tensor) -> Tensor:
        """Return unit embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""
        mapped = self.pooled(images) @ self.matrix.T
        return F.normalize(F.pad(mapped, (0, 1), value=self.constant), dim=1)

    def certify(self, search: Search, rows: np.ndarray, norm: Literal["linf", "l2"], eps: float) -> Tensor:
        """Return (B,) bool: the queries that no perturbation in the ball breaks, by proof.

        The similarity of (Pq, C) and an item's (e, c) is that of (q, C) and (P^T e, c). So the certificate is that of
        pooled pixels among items that P^T pulls back.

        Args:
            search: of this model.
            rows: numbers of the B queries.
            norm: of the ball.
            eps: its radius, pixel units.
        """
        embeddings = search.gallery.embeddings
        pulled = torch.cat([embeddings[:, :-1] @ self.matrix, embeddings[:, -1:]], dim=1)
        return certificate(replace(search, gallery=replace(search.gallery, embeddings=pulled)), rows, norm, eps)

    @classmethod
    def fit(
        cls,
        data: Dataset,
        seed: int,
        *,
        sides: Sequence[int] = SIDES,
        eps: float = EPS,
        report: Callable[[str], None] = print,
    ) -> "RobustLinear":
        """Return the metric with the highest certified R@1 on held-out classes, the identity included.

        Args:
            data: ``train`` is trained on, without the classes of ``validation``, which choose the side and the step;
                nothing else is read.
            seed: of the batches.
            sides: to choose from; those that do not divide the images' sides are passed over.
            eps: radius of the l-inf ball, pixel units.
            report: receives one line.

        Raises:
            ValueError: no side divides those of the images.
        """
        height, width = data.train.images.shape[1:3]
        usable = [side for side in sides if height % side == 0 and width % side == 0]
        if not usable:
            raise ValueError(f"images are {height} x {width}; their sides must be multiples of one of {list(sides)}")
        train = data.train if data.held_out else data.train.without(data.validation.classes)
        best, most, told = cls(usable[0]), -1.0, ""
        for side in usable:
            generator = torch_generator(seed, "linear metric", side)
            found = trained(points_of(train, side), side, eps, generator, every=CHECK)
            for check, matrix in enumerate([None, *map(product, found)]):
                model = cls(side, matrix)
                share = certified_share(model, data.validation, eps)
                if share > most:
                    best, most, told = model, share, f"side {side}, step {check * CHECK}"
        report(f"linear metric: {told}; certified R@1 on held-out classes {most:.3f}")
        return best.eval()


def certified_share(model: RobustLinear, split: Split, eps: float) -> float:
    """Return the certified R@1 in the l-inf ball of at most ``CHECKED`` evenly spaced queries to a whole split."""
    rows = np.arange(0, len(split), -(-len(split) // CHECKED))
    return float(model.certify(Search.over(model, split), rows, "linf", eps).double().mean())
