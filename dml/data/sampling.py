"""Class-balanced batches, drawn by a generator, and the pictures in them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dml.common.randomness import numpy_generator
from dml.data.base import DatasetError


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
    """Row numbers of the attacked queries: ``count`` of ``total``, ascending, the same for every model of a seed.

    Raises:
        ValueError: there are not so many.
    """
    if count > total:
        raise ValueError(f"{count} queries are to be attacked; the test half holds {total} images")
    return np.sort(numpy_generator(seed, "attacked queries").choice(total, count, replace=False))


def evenly(most: int, total: int) -> np.ndarray:
    """Row numbers, evenly spaced from the first to the last of ``total``: at most ``most``, all if there are fewer."""
    return np.linspace(0, total - 1, min(most, total)).astype(int)


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


def random_part(
    height: int, width: int, scale: tuple[float, float], generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part, as torchvision's RandomResizedCrop takes it.

    Args:
        height, width: of the picture.
        scale: least and greatest share of its area; the aspect ratio is 3:4 to 4:3.
        generator: of place and size. Where ten tries do not fit, the centre is taken.
    """
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
        wide, tall = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < wide <= width and 0 < tall <= height:
            return int(generator.integers(height - tall + 1)), int(generator.integers(width - wide + 1)), tall, wide
    # The whole of one side, and of the other as much as the ratio allows.
    tall, wide = min(height, round(width / (3 / 4))), min(width, round(height * 4 / 3))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def resized_part(picture: np.ndarray, part: tuple[int, int, int, int], side: int, mirror: bool) -> Tensor:
    """That part of a uint8 picture (H, W, 3), (3, side, side) uint8, perhaps mirrored."""
    from torchvision.transforms.v2 import functional as transform  # seconds to import, only where it is used

    cut = transform.resized_crop(torch.from_numpy(picture.copy()).permute(2, 0, 1), *part, [side, side], antialias=True)
    return transform.horizontal_flip(cut) if mirror else cut
