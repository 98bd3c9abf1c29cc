"""Adversarial training in a plane, where embeddings can be drawn and every perturbation can be tried.

Images are points of the unit square, embeddings are points of the unit circle, and losses and defences are those of the
library.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dml.common.randomness import seeded_global, torch_generator
from dml.defenses.base import Defense
from dml.defenses.joint import Joint
from dml.defenses.robust import Robust
from dml.defenses.standard import Standard
from dml.evaluation.collapse import diagnostics, why_collapsed
from dml.evaluation.dependence import ROLES, Perturbed, difference, perturb
from dml.losses.miners.base import Tuples
from dml.losses.triplet import Triplet
from dml.retrieval.gallery import Gallery, Queries
from dml.retrieval.metrics import margin, per_query

EPS = 0.1
STEPS = 3  # of PGD
CENTRES = (0.2, 0.5, 0.8)  # of nine classes, on a grid
SPREAD = 0.04  # a class is a square of twice this side; 0.22 lie between classes, so that balls of EPS do not meet
MARGIN = 0.2
CELLS = 17  # of the grid along each side of the ball that a point may move in


class Plane(nn.Module):
    """Points of the unit square as images (B, 2, 1, 1) -> points of the unit circle (B, 2)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers = nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return the points (B, 2) of the circle that images (B, 2, 1, 1) are mapped to."""
        return F.normalize(self.layers(4 * images.flatten(1) - 2), dim=1)


@dataclass(frozen=True)
class Trained:
    """A training in the plane.

    Attributes:
        defense: its name.
        miner: that selected the tuples.
        losses: of each step.
        labels: (N,) of fresh points of the classes.
        embeddings: (N, 2) of these points.
        reached: (N, cells, 2), embeddings of all points of a grid in the ball around each.
        natural: share of the points whose nearest other point is of their class.
        worst: share of them for which this holds wherever they move on the grid, to clean other points.
        collapsed: why the embedding counts as collapsed, empty if it does not.
    """

    defense: str
    miner: str
    losses: list[float]
    labels: Tensor
    embeddings: Tensor
    reached: Tensor
    natural: float
    worst: float
    collapsed: str


def defenses() -> dict[str, Defense]:
    """Return the defences that are compared in the plane, by name."""
    return {
        "standard": Standard(),
        "robust, positive": Robust(EPS, STEPS, "positive"),
        "robust, all roles": Robust(EPS, STEPS, list(ROLES)),
        "joint": Joint(EPS, STEPS),
        "joint, re-mined after": Joint(EPS, STEPS, remine="after"),
        "joint, re-mined each step": Joint(EPS, STEPS, remine="each"),
    }


def points(per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw points as images (9 * per_class, 2, 1, 1) with their labels (9 * per_class,)."""
    axis = torch.tensor(CENTRES)
    centres = torch.cartesian_prod(axis, axis).repeat_interleave(per_class, dim=0)
    drawn = centres + SPREAD * (2 * torch.rand(centres.shape, generator=generator) - 1)
    return drawn.view(-1, 2, 1, 1), torch.arange(len(axis) ** 2).repeat_interleave(per_class)


def grid(images: Tensor, eps: float, cells: int = CELLS) -> Tensor:
    """Return all points (N, cells * cells, 2) of a grid in the ball around each image (N, 2, 1, 1), cut to [0, 1]."""
    axis = torch.linspace(-eps, eps, cells)
    return (images.view(-1, 1, 2) + torch.cartesian_prod(axis, axis)).clamp(0, 1)


@torch.no_grad()
def survivors(model: nn.Module, images: Tensor, labels: Tensor, reached: Tensor) -> tuple[float, float]:
    """Return natural R@1, and R@1 under the worst point that each query reaches.

    Args:
        model: images -> unit embeddings.
        images, labels: of the gallery (N, 2, 1, 1) and (N,). Each image is a query to all others.
        reached: (N, M, 2) embeddings that each query can be moved to.
    """
    own = torch.arange(len(labels))
    gallery, queries = Gallery(model(images), labels), Queries(labels, own, own)
    natural = per_query(gallery.embeddings, queries, gallery).r1
    each = queries.take(own.repeat_interleave(reached.shape[1]))
    right = margin(reached.flatten(0, 1), each, gallery).view(reached.shape[:2]) < 0
    return float(natural.float().mean()), float((natural & right.all(1)).float().mean())


def train(name: str, defense: Defense, seed: int, *, miner: str = "semi_hard", steps: int = 150) -> Trained:
    """Train in the plane and measure the result on fresh points of the same classes.

    Args:
        name: of the defence, to show.
        defense: to train with.
        seed: of the first weights, the points and every draw.
        miner: that selects the tuples of a triplet loss.
        steps: of Adam with a one-cycle schedule, each on the same 45 points.
    """
    with seeded_global(seed, "plane"):
        model = Plane()
    generator = torch_generator(seed, "plane", "training")
    images, labels = points(5, torch_generator(seed, "plane", "points"))
    loss = Triplet(len(labels.unique()), 2, miner=miner, margin=MARGIN)
    optimizer = torch.optim.Adam(model.parameters())
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)
    losses = []
    for step in range(steps):
        value = defense(model, images, labels, loss, generator, step / steps).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        cycle.step()
        losses.append(value.item())
    fresh, classes = points(5, torch_generator(seed, "plane", "fresh points"))
    with torch.no_grad():
        embeddings = model(fresh)
        moved = grid(fresh, EPS)
        reached = model(moved.view(-1, 2, 1, 1)).view(moved.shape)
    natural, worst = survivors(model, fresh, classes, reached)
    collapsed = why_collapsed(diagnostics(Gallery(embeddings, classes)))
    return Trained(name, miner, losses, classes, embeddings, reached, natural, worst, collapsed)


PAIR = Tuples(torch.tensor([0, 3]), torch.tensor([1, 2]), torch.tensor([2, 1]))
"""Two tuples that share two images: 1 is the positive of the first and the negative of the second, 2 the reverse."""


@dataclass(frozen=True)
class TwoWays:
    """Four points in two tuples, perturbed by two adversaries.

    Attributes:
        points: (4, 2); the embedding of a point is the point itself.
        robust, joint: what they make of each role of the two tuples.
        shared: by perturbation of image 1, the change of d(a, p) - d(a, n) in each of the two tuples.
    """

    points: Tensor
    robust: Perturbed
    joint: Perturbed
    shared: Mapping[str, list[float]]


def two_ways() -> TwoWays:
    """Perturb four points that are placed so that image 1 should move to opposite sides in its two tuples."""
    places = torch.tensor([[0.24, 0.36], [0.52, 0.44], [0.78, 0.62], [0.24, 0.70]])
    images, labels = places.view(-1, 2, 1, 1), torch.tensor([0, 0, 1, 1])
    loss = Triplet(2, 2, miner="random", margin=1.0)  # wide enough that every tuple costs something
    steps = 20  # more than in training, so that an arrow shows where an image ends and not where it started
    made = {"robust": Robust(EPS, steps, list(ROLES)), "joint": Joint(EPS, steps)}
    found = {
        name: perturb(defense, nn.Flatten(), images, labels, loss, torch_generator(0, "two ways"), PAIR)
        for name, defense in made.items()
    }
    before = difference(*PAIR.pick(places))

    def change(moved: Tensor) -> list[float]:
        after = places.index_copy(0, torch.tensor([1]), moved.view(1, 2))
        return (difference(*PAIR.pick(after)) - before).tolist()

    shared = {
        "made for tuple 1": change(found["robust"].images["positive"][0]),
        "made for tuple 2": change(found["robust"].images["negative"][1]),
        "shared by both": change(found["joint"].images["positive"][0]),
    }
    return TwoWays(places, found["robust"], found["joint"], shared)
