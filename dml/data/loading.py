"""Training batches, made in the background where a step would otherwise wait for them."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dml.data.base import Split
from dml.data.sampling import balanced_batches
from dml.data.transforms import Augmentation, cropped, shifted, to_float

AHEAD = 2  # batches made in advance
WORKERS = 4  # threads that crop images; a step takes longer than they need for the next batch

Item = TypeVar("Item")


def training_batches(
    split: Split,
    *,
    classes: int,
    images_per_class: int,
    batches: int,
    augmentation: Augmentation,
    device: torch.device,
    generator: np.random.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Class-balanced batches of randomly changed images: images (B, 3, H, W) in [0, 1] and labels (B,).

    Images travel to the device as uint8. They are cropped before: images of one batch may differ in shape, and a GPU
    would spend its time on a hundred small resizes.

    Other threads make the batches ahead, except for whole images on a CPU. These take little time, and any further
    thread slows a step there: OpenMP uses all cores already.

    Args:
        split: the training images.
        classes: in a batch.
        images_per_class: in a batch.
        batches: how many to make.
        augmentation: how images are changed.
        device: to put the batches on.
        generator: of every draw; the same one gives the same batches, whatever the order of the threads.

    Raises:
        DatasetError: the images cannot fill a batch.
    """

    def made() -> Iterator[tuple[Tensor, Tensor]]:
        drawn = balanced_batches(
            split.labels,
            classes=classes,
            images_per_class=images_per_class,
            batches=batches,
            generator=generator,
        )
        with ThreadPoolExecutor(WORKERS) as pool:
            for rows in drawn:
                if augmentation.crop:
                    images = cropped([split.whole(row) for row in rows], augmentation, generator, pool.map)
                else:
                    images = shifted(split.images[rows], augmentation, generator)
                yield to_float(images, device), torch.from_numpy(split.labels[rows]).to(device)

    return ahead(made(), AHEAD) if augmentation.crop or device.type != "cpu" else made()


def ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """The same items; another thread makes the next ``count`` of them while one is used."""
    with ThreadPoolExecutor(1) as maker:  # one thread: items are made in order
        fetch = partial(next, items, None)
        waiting = deque(maker.submit(fetch) for _ in range(count))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(maker.submit(fetch))
            yield item
