"""How long a training step waits for its batch: random-resized crops of memory-mapped images, ResNet-18 at 128 pixels.

The time to make a batch in the same thread is what a step would wait without loading in the background.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dml.data.base import Pictures, Split
from dml.data.loading import training_batches
from dml.data.transforms import Augmentation
from dml.defenses.standard import Standard
from dml.losses.triplet import Triplet
from dml.models.embedder import best_device, build

STORED, IMAGES, HEIGHT, WIDTH = 112, 10, 146, 195  # classes, images per class, pixels
CLASSES, IMAGES_PER_CLASS, CROP, STEPS = 56, 2, 128, 6  # of a batch, and batches


def noise(folder: Path) -> Split:
    """Noise in a file, in the shape of photographs."""
    count, size = STORED * IMAGES, HEIGHT * WIDTH * 3
    np.random.default_rng(0).integers(0, 256, count * size, dtype=np.uint8).tofile(folder / "images.bin")
    index = np.stack([np.arange(count) * size, np.full(count, HEIGHT), np.full(count, WIDTH)], axis=1)
    stored = Pictures(np.memmap(folder / "images.bin", np.uint8, "r"), index, CROP)
    return Split(stored, np.repeat(np.arange(STORED), IMAGES), [str(label) for label in range(STORED)])


def batches(split: Split, device: torch.device, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches that training draws."""
    return training_batches(
        split,
        classes=CLASSES,
        images_per_class=IMAGES_PER_CLASS,
        batches=count,
        augmentation=Augmentation(flip=True, crop=CROP),
        device=device,
        generator=np.random.default_rng(0),
    )


def main() -> None:
    """Print the time of a batch and of a step, and the share of the step that waits."""
    device = best_device()
    model = build("resnet18", 512, seed=0).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    loss, generator = Triplet(STORED, 512, miner="distance_weighted"), torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        split = noise(Path(place))
        for _ in batches(split, device, 2):  # imports, and pages of the file
            pass
        start = time.perf_counter()
        for _ in batches(split, device, STEPS):
            pass
        making = (time.perf_counter() - start) / STEPS
        waited, steps, before = [], [], time.perf_counter()
        for images, labels in batches(split, device, STEPS):
            begun = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            Standard()(model, images, labels, loss, generator).mean().backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            ended = time.perf_counter()
            waited.append(begun - before)
            steps.append(ended - before)
            before = ended
    wait, step = sum(waited[1:]) / (STEPS - 1), sum(steps[1:]) / (STEPS - 1)  # nothing hides the first batch
    print(f"ResNet-18, {CLASSES * IMAGES_PER_CLASS} images of {CROP} pixels, on {device}")
    print(f"making a batch  {making * 1e3:9.1f} ms")
    print(f"a standard step {step * 1e3:9.1f} ms, of which it waits {wait * 1e3:.1f} ms")
    print(f"wait / making: {wait / making:.4f}   wait / step: {wait / step:.4f}")


if __name__ == "__main__":
    main()
