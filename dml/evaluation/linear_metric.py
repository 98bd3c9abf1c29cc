"""A control with a certificate that is fitted to the training classes: a linear metric on pooled pixels.

For an embedding e = P x no attack is needed to train robustly. Within eps in l-inf, the margin of a query q towards a
right item p and a wrong item n, |P(q - n)|^2 - |P(q - p)|^2, falls by at most 2 eps |P^T P (n - p)|_1 (in l2: in the l2
norm), and some perturbation reaches that. Training raises this certified margin (cf. Wang et al. 2020, "Provably Robust
Metric Learning").
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dml.common.randomness import torch_generator
from dml.data.base import Dataset, Split
from dml.data.transforms import to_float
from dml.evaluation.controls import PooledPixels, certificate
from dml.retrieval.gallery import Gallery, Matches, Queries
from dml.retrieval.index import CHUNK, Search

EPS = 8 / 255  # the radius to train for
SIDES = (8, 16)  # of the pooled images; held-out classes choose
STEPS = 160
CHECK = 40  # steps between two looks at the held-out classes
BATCH = 64  # queries in a step
RATE = 5e-3  # of Adam, falling to 0
TEMPERATURE = 0.05  # of the loss, in medians of the certified margin's absolute value before training
NEAREST = 64  # wrong items, nearest first, among which a step looks for the worst
CHECKED = 1000  # held-out queries at most

Factors = Sequence[Tensor]
"""Three matrices (3, 3), (side, side), (side, side), whose Kronecker product is P: of colours, rows and columns."""


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
            data: ``train`` is trained on and ``validation`` chooses the side and the step; nothing else is read.
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
        best, most, told = cls(usable[0]), -1.0, ""
        for side in usable:
            for step, model in trained(data.train, side, eps, torch_generator(seed, "linear metric", side)):
                share = certified_share(model, data.validation, eps)
                if share > most:
                    best, most, told = model, share, f"side {side}, step {step}"
        report(f"linear metric: {told}; certified R@1 on held-out classes {most:.3f}")
        return best.eval()


def certified_share(model: RobustLinear, split: Split, eps: float) -> float:
    """Return the certified R@1 in the l-inf ball of at most ``CHECKED`` evenly spaced queries to a whole split."""
    rows = np.arange(0, len(split), -(-len(split) // CHECKED))
    return float(model.certify(Search.over(model, split), rows, "linf", eps).double().mean())


def trained(split: Split, side: int, eps: float, generator: torch.Generator) -> Iterator[tuple[int, RobustLinear]]:
    """Yield (step, model) every ``CHECK`` steps of the training, first the identity.

    Args:
        split: the training images.
        side: of the pooled images.
        eps: radius of the l-inf ball, pixel units.
        generator: of the batches.
    """
    yield 0, RobustLinear(side)
    plain = PooledPixels(side)
    chunks = range(0, len(split), CHUNK)
    points = torch.cat([plain.pooled(to_float(split.images[first : first + CHUNK])).float() for first in chunks])
    groups = None if split.groups is None else torch.from_numpy(split.groups.copy())
    gallery = Gallery(points, torch.from_numpy(split.labels.copy()), groups)
    # A full matrix fits the training classes better and held-out ones worse: its product form has far fewer numbers.
    factors = [torch.eye(size, requires_grad=True) for size in (3, side, side)]
    optimiser = torch.optim.Adam(factors, lr=RATE)
    everyone = torch.arange(len(split))
    start = torch.cat([certified_margin(factors, gallery, rows, eps).detach() for rows in everyone.split(BATCH)])
    if not len(start):
        raise ValueError("no training image has another of its class (and another group); a metric needs such pairs")
    temperature = TEMPERATURE * max(float(start.abs().median()), 1e-6)
    for step in range(1, STEPS + 1):
        optimiser.param_groups[0]["lr"] = RATE * (1 - (step - 1) / STEPS)
        rows = torch.randperm(len(split), generator=generator)[:BATCH]
        loss = saturating(certified_margin(normalised(factors), gallery, rows, eps), temperature)
        optimiser.zero_grad()
        loss.sum().div(BATCH).backward()
        optimiser.step()
        if step % CHECK == 0:
            yield step, RobustLinear(side, product([factor.detach() for factor in factors]))


def saturating(margins: Tensor, temperature: float) -> Tensor:
    """Return the loss of each certified margin, between 0 and 1: a hopeless query costs 1 and has no gradient."""
    return torch.sigmoid(-margins / temperature)


def certified_margin(factors: Factors, gallery: Gallery, rows: Tensor, eps: float) -> Tensor:
    """Return the certified margins of some items as queries to all others; those without a right item are left out.

    Each is that of the nearest right item and of the worst wrong item: no other pair has a gradient.

    Args:
        factors: of P.
        gallery: pooled images (N, D) in place of embeddings, not of unit length.
        rows: of the queries.
        eps: radius of the l-inf ball, pixel units.
    """
    points = gallery.embeddings
    queries = Queries(gallery.labels[rows], gallery.groups[rows], rows)
    matches = Matches.of(queries, gallery)
    usable = matches.right.any(1) & matches.wrong.any(1)
    rows, right, wrong = rows[usable], matches.right[usable], matches.wrong[usable]
    with torch.no_grad():
        mapped = image(points, factors)
        pulled = image(mapped, [factor.T for factor in factors])
        apart = mapped.square().sum(1) - 2 * mapped[rows] @ mapped.T  # squared distances, less that of q to 0
        p = apart.masked_fill(~right, torch.inf).argmin(1)
        near = apart.masked_fill(~wrong, torch.inf).topk(min(NEAREST, len(points)), largest=False)
        reach = torch.cdist(pulled[p][:, None], pulled[near.indices], p=1).squeeze(1)
        n = near.indices.gather(1, (near.values - 2 * eps * reach).argmin(1, keepdim=True)).squeeze(1)
    q = points[rows]
    to_wrong, to_right, between = image(torch.stack([q - points[n], q - points[p], points[n] - points[p]]), factors)
    lead = to_wrong.square().sum(1) - to_right.square().sum(1)
    return lead - 2 * eps * image(between, [factor.T for factor in factors]).abs().sum(1)


def image(points: Tensor, factors: Factors) -> Tensor:
    """Return P x for each x of (..., D)."""
    colours, rows, columns = factors
    grid = points.unflatten(-1, (len(colours), len(rows), len(columns)))
    return torch.einsum("dc,...chw->...dhw", colours, rows @ grid @ columns.T).flatten(-3)


def normalised(factors: Factors) -> list[Tensor]:
    """Return factors whose squares sum to their size, so that the scale of P does not change the temperature."""
    return [factor * (len(factor) / factor.square().sum()).sqrt() for factor in factors]


def product(factors: Factors) -> Tensor:
    """Return P (D, D) in float64, scaled to a spectral norm of 1, less rounding."""
    scaled = [factor.double() / torch.linalg.matrix_norm(factor.double(), 2) for factor in factors]
    return torch.kron(scaled[0], torch.kron(scaled[1], scaled[2])) * (1 - 1e-12)
