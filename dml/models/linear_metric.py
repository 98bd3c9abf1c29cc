"""A linear metric of pooled pixels, trained to be robust in closed form.

For an embedding e = P x no attack is needed to train robustly. Within eps in l-inf, the margin of a query q towards a
right item p and a wrong item n, |P(q - n)|^2 - |P(q - p)|^2, falls by at most 2 eps |P^T P (n - p)|_1 (in l2: in the l2
norm), and some perturbation reaches that. Training raises this certified margin (cf. Wang et al. 2020, "Provably Robust
Metric Learning").
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dml.data.base import Split
from dml.data.transforms import to_float

EPS = 8 / 255  # the radius to train for
STEPS = 160
BATCH = 64  # queries in a step
RATE = 5e-3  # of Adam, falling to 0
TEMPERATURE = 0.05  # of the loss, in medians of the certified margin's absolute value before training
NEAREST = 64  # wrong items, nearest first, among which a step looks for the worst
CHUNK = 256  # images pooled at a time

Factors = Sequence[Tensor]
"""Three matrices (3, 3), (side, side), (side, side), whose Kronecker product is P: of colours, rows and columns."""


class Points(NamedTuple):
    """Pooled images (N, 3 * side**2) float32 with their labels (N,) and groups (N,)."""

    pixels: Tensor
    labels: Tensor
    groups: Tensor


def pooled(images: Tensor, side: int) -> Tensor:
    """Return images (B, 3, H, W) averaged in side x side boxes, less .5: (B, 3 * side**2) float64."""
    return F.adaptive_avg_pool2d(images.double(), side).flatten(1) - 0.5


def points_of(split: Split, side: int) -> Points:
    """Return all images of a split, pooled; without groups each is a separate group."""
    chunks = range(0, len(split), CHUNK)
    pixels = torch.cat([pooled(to_float(split.images[first : first + CHUNK]), side).float() for first in chunks])
    groups = torch.arange(len(split)) if split.groups is None else torch.from_numpy(split.groups.copy())
    return Points(pixels, torch.from_numpy(split.labels.copy()), groups)


def trained(points: Points, side: int, eps: float, generator: torch.Generator, *, every: int) -> Iterator[Factors]:
    """Yield the factors of P after every ``every`` steps of the training, without gradient.

    Args:
        points: to train on.
        side: of the pooled images.
        eps: radius of the l-inf ball, pixel units.
        generator: of the batches.
        every: steps; it divides ``STEPS``.

    Raises:
        ValueError: no image has another of its class and of another group.
    """
    # A full matrix fits the training classes better and held-out ones worse: its product form has far fewer numbers.
    factors = [torch.eye(size, requires_grad=True) for size in (3, side, side)]
    optimiser = torch.optim.Adam(factors, lr=RATE)
    everyone = torch.arange(len(points.labels))
    start = torch.cat([certified_margin(factors, points, rows, eps).detach() for rows in everyone.split(BATCH)])
    if not len(start):
        raise ValueError("no training image has another of its class (and another group); a metric needs such pairs")
    temperature = TEMPERATURE * max(float(start.abs().median()), 1e-6)
    for step in range(1, STEPS + 1):
        optimiser.param_groups[0]["lr"] = RATE * (1 - (step - 1) / STEPS)
        rows = torch.randperm(len(everyone), generator=generator)[:BATCH]
        loss = saturating(certified_margin(normalised(factors), points, rows, eps), temperature)
        optimiser.zero_grad()
        loss.sum().div(BATCH).backward()
        optimiser.step()
        if step % every == 0:
            yield [factor.detach() for factor in factors]


def saturating(margins: Tensor, temperature: float) -> Tensor:
    """Return the loss of each certified margin (B,), from 0 to 1: a hopeless query costs 1 and has no gradient."""
    return torch.sigmoid(-margins / temperature)


def certified_margin(factors: Factors, points: Points, rows: Tensor, eps: float) -> Tensor:
    """Return the certified margins of some items as queries to all others; those without a right item are left out.

    Each is that of the nearest right item and of the worst wrong item: no other pair has a gradient.

    Args:
        factors: of P.
        points: the items; those of a query's group are ignored, the query itself among them.
        rows: of the queries.
        eps: radius of the l-inf ball, pixel units.
    """
    pixels = points.pixels
    same = points.labels[rows, None] == points.labels
    others = points.groups[rows, None] != points.groups
    usable = (same & others).any(1) & (~same & others).any(1)
    rows, right, wrong = rows[usable], (same & others)[usable], (~same & others)[usable]
    with torch.no_grad():
        mapped = image(pixels, factors)
        pulled = image(mapped, [factor.T for factor in factors])
        apart = mapped.square().sum(1) - 2 * mapped[rows] @ mapped.T  # squared distances, less that of q to 0
        p = apart.masked_fill(~right, torch.inf).argmin(1)
        near = apart.masked_fill(~wrong, torch.inf).topk(min(NEAREST, len(pixels)), largest=False)
        reach = torch.cdist(pulled[p][:, None], pulled[near.indices], p=1).squeeze(1)
        n = near.indices.gather(1, (near.values - 2 * eps * reach).argmin(1, keepdim=True)).squeeze(1)
    q = pixels[rows]
    to_wrong, to_right, between = image(torch.stack([q - pixels[n], q - pixels[p], pixels[n] - pixels[p]]), factors)
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
