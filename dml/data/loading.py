"""Batches to train on, made ready in other threads while the last one is trained on."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dml.data import Split
from dml.data.sampling import augment, balanced_batches, random_part, resized_part, to_float
from dml.training.schedule import Schedule

AHEAD = 2  # batches that lie ready
WORKERS = 4  # threads that cut pictures; a step takes longer than they need for the next batch

Item = TypeVar("Item")


def training_batches(
    split: Split, schedule: Schedule, count: int, device: torch.device, generator: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Class-balanced batches of pictures changed at random: images (B, 3, H, W) in [0, 1] and labels (B,).

    Pictures travel to the device as uint8. They are cut before that: training pictures of one batch may differ in
    shape, and a GPU would be kept busy with a hundred small resizes.

    Args:
        split: the training images.
        schedule: classes and images in a batch, and how pictures are changed.
        count: how many batches.
        device: that they are wanted on.
        generator: of every draw; the same one gives the same batches, however the threads run.
    """

    def made() -> Iterator[tuple[Tensor, Tensor]]:
        with ThreadPoolExecutor(WORKERS) as pool:
            for rows in balanced_batches(
                split.labels,
                classes=schedule.classes,
                images_per_class=schedule.images_per_class,
                batches=count,
                generator=generator,
            ):
                if schedule.crop:
                    pictures = _cut(split, rows, schedule, generator, pool)
                else:
                    pictures = augment(
                        split.images[rows], shift=schedule.shift, flip=schedule.flip, generator=generator
                    )
                yield to_float(pictures, device), torch.from_numpy(split.labels[rows]).to(device)

    return ahead(made(), AHEAD)


def _cut(
    split: Split, rows: np.ndarray, schedule: Schedule, generator: np.random.Generator, pool: ThreadPoolExecutor
) -> np.ndarray:
    """Random parts (B, crop, crop, 3) of the whole pictures of some rows."""
    pictures = [split.whole(row) for row in rows]
    drawn = [
        (random_part(*picture.shape[:2], schedule.crop_scale, generator), schedule.flip and generator.random() < 0.5)
        for picture in pictures
    ]
    cut = pool.map(lambda picture, draw: resized_part(picture, draw[0], schedule.crop, draw[1]), pictures, drawn)
    return torch.stack(list(cut)).permute(0, 2, 3, 1).numpy()


def ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """The same items, the next ``count`` of them made in another thread while one is used."""
    with ThreadPoolExecutor(1) as maker:  # one thread: items are made in order
        fetch = partial(next, items, None)
        waiting = deque(maker.submit(fetch) for _ in range(count))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(maker.submit(fetch))
            yield item
