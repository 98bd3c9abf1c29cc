"""Class-balanced batches, drawn by a generator, and the pictures in them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dml.datasets.base import DatasetError
from dml.randomness import numpy_generator


def balanced_batches(
    labels: np.ndarray, *, classes: int, images_per_class: int, batches: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Row numbers of ``batches`` batches: ``classes`` classes times ``images_per_class`` different images.

    Classes come in random rounds, so that each is seen equally often. No image stands twice in a batch.

    Raises:
        DatasetError: the labels cannot fill such a batch.
    """
    values, counts = np.unique(labels, return_counts=True)
    if len(values) < classes:
        raise DatasetError(f"a batch of {classes} classes cannot be filled from {len(values)} training classes")
    if counts.min() < images_per_class:
        raise DatasetError(
            f"a batch of {images_per_class} images a class cannot be filled: "
            f"training class {values[counts.argmin()]} has {counts.min()}"
        )
    rows = {value: np.flatnonzero(labels == value) for value in values}
    waiting = np.empty(0, dtype=values.dtype)
    for _ in range(batches):
        if len(waiting) < classes:
            # What is left of the last round comes first, and last in the new one, so that no batch holds it twice.
            fresh = generator.permutation(values)
            left_over = np.isin(fresh, waiting)
            waiting = np.concatenate([waiting, fresh[~left_over], fresh[left_over]])
        chosen, waiting = waiting[:classes], waiting[classes:]
        yield np.concatenate([generator.choice(rows[value], images_per_class, replace=False) for value in chosen])


def sample_rows(count: int, total: int, seed: int) -> np.ndarray:
    """Row numbers of the queries that are attacked: ``count`` of ``total``, ascending, the same for every model.

    Raises:
        ValueError: there are not so many.
    """
    if count > total:
        raise ValueError(f"{count} queries are to be attacked; the test half holds {total} images")
    return np.sort(numpy_generator(seed, "attacked queries").choice(total, count, replace=False))


def to_float(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 pictures (B, H, W, 3) -> float pictures (B, 3, H, W) in [0, 1], channels last in memory."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float().div_(255)


def augment(images: np.ndarray, *, shift: int, flip: bool, generator: np.random.Generator) -> np.ndarray:
    """Move each uint8 picture (B, H, W, 3) by up to ``shift`` pixels (edges repeat) and mirror half of them."""
    if not shift and not flip:
        return images
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    out = np.empty_like(images)
    for row, (top, left) in enumerate(generator.integers(0, 2 * shift + 1, (len(images), 2))):
        picture = padded[row, top : top + height, left : left + width]
        out[row] = picture[:, ::-1] if flip and generator.random() < 0.5 else picture
    return out
