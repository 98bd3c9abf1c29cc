"""Finds near duplicates (bursts, several shots of one shelf) and joins them into groups.

A pair of one class is as near as its *ratio* says: the distance of its two images over the distance of either to its
nearest image of another class, whichever is less (after Lowe 2004). Distances are Euclidean, between pixels averaged
in 8 x 8 boxes. A plain distance would join dark images and images of little contrast, which are near to everything.

The threshold comes from training classes. Two images of different classes are no twins, so their ratio, with a third
class in the place of another class, shows what strangers reach. The threshold is the ratio below which one training
image in 100 has a stranger: fewer would let a set's few copies with wrong labels decide. It is .7 at most: look-alikes,
such as orchids of one kind on black, are joined from .56 on, and outnumber twins above .7.

Measured on the training classes of traffic signs, of which the tracks are known: 94% of the pairs below the threshold
are of one track. At the same share of strangers, 16 x 16 boxes join fewer pairs, 92% of them of one track; images
without their mean and contrast join more, 74%; plain distances join a quarter as many, 75%.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from dml.data.base import DatasetError, Source

BOXES = 8  # to a side
STRANGERS = 0.01  # share of training images that may have a stranger below the threshold
WIDEST = 0.7  # largest threshold that is chosen
AT_ONCE = 256  # images whose distances to all others are in memory


@dataclass(frozen=True)
class Others:
    """The nearest images of other classes.

    Attributes:
        item: (N,) int64, number of the nearest image of another class.
        near: (N,) its distance.
        third: (N,) distance of the nearest image that is neither of the own class nor of the class of ``item``;
            infinite if there are two classes.
    """

    item: np.ndarray
    near: np.ndarray
    third: np.ndarray


def others(points: np.ndarray, labels: np.ndarray) -> Others:
    """Return the nearest images of other classes, given points (N, D) and labels (N,) of at least two classes."""
    item = np.empty(len(points), np.int64)
    near, third = np.empty((2, len(points)))
    for first in range(0, len(points), AT_ONCE):
        rows = slice(first, first + AT_ONCE)
        apart = _distances(points[rows], points)
        apart[labels[rows, None] == labels] = np.inf
        item[rows], near[rows] = apart.argmin(1), apart.min(1)
        apart[labels[item[rows], None] == labels] = np.inf
        third[rows] = apart.min(1)
    return Others(item, near, third)


def stranger_ratios(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (N,) the ratio of each image and its nearest image of another class, measured against third classes."""
    found = others(points, labels)
    item = found.item
    back = labels[item[item]]  # the class that is nearest to the other image: it may be the first one's
    return _ratio(found.near, np.minimum(found.third, np.where(back == labels, found.third[item], found.near[item])))


def choose(points: np.ndarray, labels: np.ndarray) -> float:
    """Return the threshold, given points (N, D) and labels (N,) of at least three training classes."""
    return min(float(np.quantile(stranger_ratios(points, labels), STRANGERS)), WIDEST)


def pairs(points: np.ndarray, labels: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (P, 2) the pairs of one class whose ratio is below a limit, nearest first, and (P,) their ratios."""
    near = others(points, labels).near
    rows, ratios = [np.empty((0, 2), np.int64)], [np.empty(0)]
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        first, second = np.triu_indices(len(members), 1)
        apart = _distances(points[members], points[members])[first, second]
        ratio = _ratio(apart, np.minimum(near[members[first]], near[members[second]]))
        rows.append(np.stack([members[first], members[second]], axis=1)[ratio < limit])
        ratios.append(ratio[ratio < limit])
    order = np.argsort(np.concatenate(ratios), kind="stable")
    return np.concatenate(rows)[order], np.concatenate(ratios)[order]


def components(count: int, linked: np.ndarray) -> np.ndarray:
    """Return (count,) numbers from 0, equal for items that links (L, 2) join, directly or through others."""
    graph = coo_array((np.ones(len(linked)), (linked[:, 0], linked[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def join(
    labels: np.ndarray, linked: np.ndarray, ratios: np.ndarray, asked: np.ndarray, found: np.ndarray
) -> tuple[np.ndarray, list[int]]:
    """Join images into groups so that every query can find an image of its class outside its group.

    Where the links join too much of a class for that, its widest links go, one at a time: its threshold is lowered.

    Args:
        labels: (N,) of the images.
        linked: (L, 2) pairs of one class.
        ratios: (L,) of these pairs.
        asked: (N,) bool, the queries.
        found: (N,) bool, the gallery; an image may be both.

    Returns:
        (N,) the number of each image's group, and the labels of the classes that lost links, ascending.
    """
    groups, short = components(len(labels), linked), []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        own = labels[linked[:, 0]] == label
        if not own.any() or _searchable(groups[members], asked[members], found[members]):
            continue
        inside = np.searchsorted(members, linked[own])
        # A spanning tree keeps what is joined at every threshold; +1, since a sparse array drops zeros.
        tree = coo_array((ratios[own] + 1, (inside[:, 0], inside[:, 1])), shape=(len(members),) * 2)
        tree = minimum_spanning_tree(tree.tocsr()).tocoo()
        links = np.stack([tree.row, tree.col], axis=1)[np.argsort(tree.data, kind="stable")]
        while len(links) and not _searchable(components(len(members), links), asked[members], found[members]):
            links = links[:-1]
        groups[members] = groups.max() + 1 + components(len(members), links)
        short.append(int(label))
    return np.unique(groups, return_inverse=True)[1].reshape(-1), short


def _searchable(groups: np.ndarray, asked: np.ndarray, found: np.ndarray) -> bool:
    """Whether each query of one class has a gallery item outside its group."""
    in_group = np.bincount(groups[found], minlength=groups.max() + 1)
    return bool((in_group[groups[asked]] < found.sum()).all())


def _distances(some: np.ndarray, points: np.ndarray) -> np.ndarray:
    squared = (some**2).sum(1)[:, None] + (points**2).sum(1) - 2 * some @ points.T
    return np.sqrt(np.where(squared < 1e-12, 0.0, squared))  # equal images: not the rounding of their difference


def _ratio(apart: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Ratio of distances; equal images are twins, whatever is near them."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(apart == 0, 0.0, apart / near)


@dataclass(frozen=True)
class Found:
    """What was joined.

    Attributes:
        threshold: of the ratio.
        groups: (N,) number of each image's group, rows as in the source.
        training: (N,) bool, the images of training classes.
        short: names of the classes whose threshold was lowered.
        joined: (P, 2) pairs of training classes below the threshold, the ones nearest to it last.
        apart: (P, 2) pairs of training classes above it and in two groups, the ones nearest to it first.
        ratios: of ``joined`` and of ``apart``.
    """

    threshold: float
    groups: np.ndarray
    training: np.ndarray
    short: list[str]
    joined: np.ndarray
    apart: np.ndarray
    ratios: tuple[np.ndarray, np.ndarray]

    def share(self, rows: np.ndarray) -> float:
        """Share of the images of a mask that are in a group of two or more."""
        return float((np.bincount(self.groups)[self.groups[rows]] > 1).mean())


def pooled(source: Source) -> np.ndarray:
    """Return (N, 3 * BOXES**2) the averages of the boxes of each image's central square, in [0, 1]."""
    points = np.empty((len(source.labels), 3 * BOXES**2))
    for row, make in source.tasks(np.arange(len(points))):
        small = ImageOps.fit(make(8 * BOXES), (BOXES, BOXES), Image.Resampling.BOX)
        points[row] = np.asarray(small, dtype=np.float64).reshape(-1) / 255
    return points


def find_groups(source: Source, train_fraction: float, threshold: float | None = None) -> Found:
    """Join the near duplicates of a source.

    Distances to other classes are taken within the training classes and within the test classes, as in a search.

    Args:
        source: of the images.
        train_fraction: share of the classes, from the first on, that are for training.
        threshold: of the ratio; chosen on the training classes if None.

    Raises:
        DatasetError: there are fewer than three training classes or two test classes, or the threshold joins most
            classes into one group each.
    """
    labels, classes = source.labels, len(source.class_names)
    seen = source.train_classes or round(classes * train_fraction)
    if seen < 3 or classes - seen < 2:
        raise DatasetError(
            f"{classes} classes leave {seen} for training and {classes - seen} for testing; "
            "finding near duplicates needs three and two"
        )
    points, training = pooled(source), labels < seen
    if threshold is None:
        threshold = choose(points[training], labels[training])
    parts = [
        (np.flatnonzero(part), *pairs(points[part], labels[part], 2 * threshold)) for part in (training, ~training)
    ]
    linked = np.concatenate([rows[inside[ratio < threshold]] for rows, inside, ratio in parts])
    ratios = np.concatenate([ratio[ratio < threshold] for _, _, ratio in parts])
    asked = found = np.ones(len(labels), bool)
    if source.queries is not None:  # the column counts for test classes only
        asked, found = training | source.queries, training | ~source.queries
    groups, short = join(labels, linked, ratios, asked, found)
    if len(short) > classes / 2:
        raise DatasetError(
            f"the threshold {threshold:.3f} joins {len(short)} of {classes} classes into one group each; lower it"
        )
    rows, inside, ratio = parts[0]
    near, below = rows[inside], ratio < threshold
    above = ~below & (groups[near[:, 0]] != groups[near[:, 1]])
    return Found(
        threshold,
        groups,
        training,
        [source.class_names[label] for label in short],
        near[below],
        near[above],
        (ratio[below], ratio[above]),
    )
