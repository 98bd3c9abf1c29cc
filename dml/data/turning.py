"""More training classes: images turned by quarters of a circle."""

import numpy as np

from dml.data.base import Pictures, Split

TURNS = 4


class TurnedImages:
    """The uint8 images (4N, S, S, 3) of N square ones: as they are, then turned by one, two and three quarters.

    Args:
        images: (N, S, S, 3). They are turned when they are asked for, so that no copy is kept.
    """

    def __init__(self, images: np.ndarray | Pictures) -> None:
        self.images = images

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Images (B, S, S, 3) of row numbers (B,)."""
        found = np.array(self.images[rows % len(self.images)])
        for turns in range(1, TURNS):
            chosen = rows // len(self.images) == turns
            found[chosen] = np.rot90(found[chosen], turns, axes=(1, 2))
        return found

    def __len__(self) -> int:
        return TURNS * len(self.images)


def turned(split: Split) -> Split:
    """Return a training split in which each quarter turn of a class is a separate class, after those of the split.

    Retrieval is judged on classes that training never saw, so more of them help it more than more images of each do.
    Classifiers learn to tell turned classes from unturned ones in the same way (Gidaris et al. 2018).
    """
    classes = int(split.labels.max()) + 1
    offsets = np.repeat(np.arange(TURNS), len(split))
    groups = None
    if split.groups is not None:
        groups = np.tile(split.groups, TURNS) + offsets * (int(split.groups.max()) + 1)
    names = [
        f"{name}, turned {90 * turn}" if turn else name for turn in range(TURNS) for name in split.class_names[:classes]
    ]
    return Split(TurnedImages(split.images), np.tile(split.labels, TURNS) + offsets * classes, names, groups)
