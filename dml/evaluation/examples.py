"""A few attacked queries to look at: their images, what they retrieve, and where they are embedded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dml.attacks.balls import Linf
from dml.common.files import atomic
from dml.common.randomness import numpy_generator, torch_generator
from dml.data.base import Split
from dml.evaluation.engine import Group, Worst
from dml.retrieval.index import Search
from dml.retrieval.metrics import ranking

SHOWN = 5  # items retrieved for each query


@dataclass(frozen=True)
class Examples:
    """Attacked queries, with all gallery images of their classes.

    Attributes:
        eps: radius of the l-inf ball.
        rows: (Q,) numbers of the queries.
        labels: (Q,) their classes.
        clean, perturbed: (Q, H, W, 3) in [0, 1].
        before, after: (Q, 5) gallery rows retrieved for the natural and the perturbed image, best first; fewer in a
            smaller gallery.
        start, end: (Q, D) embeddings of the natural and the perturbed images.
        class_rows: (M,) gallery rows of all images of the queries' classes.
        class_embeddings: (M, D).
    """

    eps: float
    rows: np.ndarray
    labels: np.ndarray
    clean: np.ndarray
    perturbed: np.ndarray
    before: np.ndarray
    after: np.ndarray
    start: np.ndarray
    end: np.ndarray
    class_rows: np.ndarray
    class_embeddings: np.ndarray

    def write(self, file: Path) -> None:
        """Write everything to one .npz file."""
        with atomic(file) as partial, partial.open("wb") as stream:
            np.savez(stream, **vars(self))

    @classmethod
    def read(cls, file: Path) -> "Examples":
        """Read what :meth:`write` wrote."""
        with np.load(file, allow_pickle=False) as stored:
            return cls(**{**stored, "eps": float(stored["eps"])})


def example_rows(search: Search, *, classes: int, images: int, seed: int) -> np.ndarray:
    """Return the numbers of a few queries of a few classes, the same for every model.

    Args:
        search: whose queries to choose from.
        classes: to draw, at most.
        images: per class, at most.
        seed: of the draw.
    """
    split = search.query_split
    generator = numpy_generator(seed, "examples")
    labels = np.sort(generator.choice(split.classes, min(classes, len(split.classes)), replace=False))
    found = [np.flatnonzero(split.labels == label) for label in labels]
    return np.concatenate([np.sort(generator.choice(rows, min(images, len(rows)), replace=False)) for rows in found])


@torch.no_grad()
def examples(search: Search, rows: np.ndarray, groups: Sequence[Group], eps: float, *, seed: int) -> Examples:
    """Attack the queries of some rows in one l-inf ball and keep the images.

    Args:
        search: the model and its gallery.
        rows: numbers of the queries.
        groups: attacks, run in turn on the queries that still survive.
        eps: radius.
        seed: of the random starts.
    """
    queries, gallery = search.queries(rows), search.gallery
    worst = Worst(search, search.images(rows), queries)
    for group in groups:
        for number, run in enumerate(group.runs):
            worst.advance(run, Linf(eps), torch_generator(seed, "examples", eps, group.name, number))
    labels = search.query_split.labels[rows]
    class_rows = np.flatnonzero(np.isin(search.split.labels, labels))
    start, end = search.query_embeddings[torch.from_numpy(rows).to(gallery.labels.device)], search.model(worst.images)
    count = min(SHOWN, len(gallery) - (0 if search.apart else 1))
    return Examples(
        eps=eps,
        rows=rows,
        labels=labels,
        clean=worst.clean.permute(0, 2, 3, 1).cpu().numpy(),
        perturbed=worst.images.permute(0, 2, 3, 1).cpu().numpy(),
        before=ranking(start, queries, gallery, count).cpu().numpy(),
        after=ranking(end, queries, gallery, count).cpu().numpy(),
        start=start.cpu().numpy(),
        end=end.cpu().numpy(),
        class_rows=class_rows,
        class_embeddings=gallery.embeddings[torch.from_numpy(class_rows).to(start.device)].cpu().numpy(),
    )


Retrieved = list[tuple[np.ndarray, bool]]
"""Gallery images (H, W, 3) uint8, best first, and whether each is of the query's class."""


def example_images(split: Split, shown: Examples, place: int) -> tuple[np.ndarray, np.ndarray, Retrieved, Retrieved]:
    """Return one example: the query and its perturbed image (H, W, 3) in [0, 1], retrieved before and after.

    Args:
        split: the gallery's images.
        shown: the examples.
        place: which of them.
    """

    def retrieved(rows: np.ndarray) -> Retrieved:
        return [(split.images[row], bool(split.labels[row] == shown.labels[place])) for row in rows]

    return shown.clean[place], shown.perturbed[place], retrieved(shown.before[place]), retrieved(shown.after[place])


def telling_examples(split: Split, shown: Examples, count: int) -> list[int]:
    """Return the places of ``count`` examples of different classes, the most telling first.

    First come queries that are right before the attack and wrong after it, then those that are right before; among
    equals, those that retrieve the most right items before.

    Args:
        split: the gallery's images.
        shown: the examples.
        count: at most.
    """
    right, after = (split.labels[found] == shown.labels[:, None] for found in (shown.before, shown.after))
    broken = right[:, 0] & ~after[:, 0]
    order = np.lexsort((right.sum(axis=1), right[:, 0], broken)).tolist()  # the best come last
    best = {shown.labels[place]: place for place in order}  # keeps the last of each class
    return sorted(best.values(), key=order.index, reverse=True)[:count]
