"""Tuple mining: embeddings and labels of a batch -> one (anchor, positive, negative) for each usable anchor.

Every miner has the same signature and returns row numbers of the batch. An anchor needs another image of its class and
an image of another class in the batch; an anchor that lacks either is left out.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Tuples(NamedTuple):
    """Row numbers (T,) of the three roles; entry t of each field belongs to tuple t."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor

    def pick(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the embeddings (T, D) of the three roles, given those of the batch (B, D)."""
        return embeddings[self.anchor], embeddings[self.positive], embeddings[self.negative]


Miner = Callable[[Tensor, Tensor, torch.Generator], Tuples]
"""Unit embeddings (B, D), labels (B,) and the generator of every draw -> tuples."""


def random_tuples(embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tuples:
    """Select a random positive and a random negative for each anchor."""
    same, other = _masks(labels)
    anchor = (same.any(1) & other.any(1)).nonzero().squeeze(1)
    return Tuples(anchor, _draw(same[anchor].float(), generator), _draw(other[anchor].float(), generator))


def semi_hard(embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tuples:
    """Select a random positive, and the nearest negative that is farther than it (FaceNet, Schroff et al. 2015).

    Where every negative is nearer than the positive, select the farthest of them: the least hard one.
    """
    same, other = _masks(labels)
    anchor = (same.any(1) & other.any(1)).nonzero().squeeze(1)
    positive = _draw(same[anchor].float(), generator)
    distance = pairwise_distance(embeddings)[anchor]
    to_positive = distance.gather(1, positive[:, None])
    candidate = other[anchor]
    farther = candidate & (distance > to_positive)
    nearest_farther = distance.masked_fill(~farther, torch.inf).argmin(1)
    farthest = distance.masked_fill(~candidate, -torch.inf).argmax(1)
    return Tuples(anchor, positive, torch.where(farther.any(1), nearest_farther, farthest))


def soft_hard(embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tuples:
    """Select a random one of the hard positives and of the hard negatives (Roth et al. 2020; S of HM[S, .]).

    A positive is hard if it is farther than the nearest negative, a negative if it is nearer than the farthest
    positive. Where there is none, any will do. An anchor is never its own positive.
    """
    same, other = _masks(labels)
    anchor = (same.any(1) & other.any(1)).nonzero().squeeze(1)
    positive, negative, distance = same[anchor], other[anchor], pairwise_distance(embeddings)[anchor]
    hard_positive = positive & (distance > distance.masked_fill(~negative, torch.inf).amin(1, keepdim=True))
    hard_negative = negative & (distance < distance.masked_fill(~positive, -torch.inf).amax(1, keepdim=True))
    hard_positive = torch.where(hard_positive.any(1, keepdim=True), hard_positive, positive)
    hard_negative = torch.where(hard_negative.any(1, keepdim=True), hard_negative, negative)
    return Tuples(anchor, _draw(hard_positive.float(), generator), _draw(hard_negative.float(), generator))


def distance_weighted(
    embeddings: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
) -> Tuples:
    """Select a random positive, and draw a negative with weight 1 / q(d) (Wu et al. 2017, section 3).

    q(d) is the density of distances between random points of the unit sphere. Distances below ``cutoff`` count as the
    cutoff. Negatives beyond ``nonzero_loss_cutoff`` are drawn only where there is no other.
    """
    same, other = _masks(labels)
    anchor = (same.any(1) & other.any(1)).nonzero().squeeze(1)
    dimension = embeddings.shape[1]
    distance = pairwise_distance(embeddings)[anchor].double().clamp(min=cutoff, max=1.999)
    log_density = (dimension - 2) * distance.log() + (dimension - 3) / 2 * (1 - distance.square() / 4).log()
    candidate = other[anchor]
    near = candidate & (distance < nonzero_loss_cutoff)
    usable = torch.where(near.any(1, keepdim=True), near, candidate)
    log_weight = (-log_density).masked_fill(~usable, -torch.inf)
    weight = (log_weight - log_weight.max(1, keepdim=True).values).exp()
    return Tuples(anchor, _draw(same[anchor].float(), generator), _draw(weight, generator))


MINERS: dict[str, Miner] = {
    "random": random_tuples,
    "semi_hard": semi_hard,
    "soft_hard": soft_hard,
    "distance_weighted": distance_weighted,
}


def pairwise_distance(embeddings: Tensor) -> Tensor:
    """Return Euclidean distances (B, B) between unit embeddings (B, D)."""
    with torch.autocast(embeddings.device.type, enabled=False):  # neighbours differ by less than bfloat16 resolves
        return (2 - 2 * embeddings @ embeddings.T).clamp_min(0).sqrt()


def _masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return masks (B, B): another image of the same class, and an image of another class."""
    equal = labels[:, None] == labels[None, :]
    return equal & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~equal


def _draw(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one column per row, with probability proportional to the weights (T, B)."""
    if not len(weights):
        return torch.empty(0, dtype=torch.long, device=weights.device)
    return torch.multinomial(weights.cpu(), 1, generator=generator).squeeze(1).to(weights.device)
