"""How long a training step waits for its batch: random-resized crops of memory-mapped images, ResNet-18 at 128 pixels.

The time to make a batch in the same thread is what a step would wait without loading in the background.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
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
IMAGES_PER_CLASS = 2  # of a batch


def noise(folder: Path, crop: int) -> Split:
    """Noise in a file, in the shape of photographs."""
    count, size = STORED * IMAGES, HEIGHT * WIDTH * 3
    np.random.default_rng(0).integers(0, 256, count * size, dtype=np.uint8).tofile(folder / "images.bin")
    index = np.stack([np.arange(count) * size, np.full(count, HEIGHT), np.full(count, WIDTH)], axis=1)
    stored = Pictures(np.memmap(folder / "images.bin", np.uint8, "r"), index, (crop, crop))
    return Split(stored, np.repeat(np.arange(STORED), IMAGES), [str(label) for label in range(STORED)])


def batches(split: Split, device: torch.device, count: int, classes: int, crop: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches that training draws."""
    return training_batches(
        split,
        classes=classes,
        images_per_class=IMAGES_PER_CLASS,
        batches=count,
        augmentation=Augmentation(flip=True, crop=crop),
        device=device,
        generator=np.random.default_rng(0),
    )


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Print the time of a batch and of a step, and the share of the step that waits; return the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--classes", type=int, default=56, help="of a batch")
    parser.add_argument("--crop", type=int, default=128, help="side of an image")
    parser.add_argument("--steps", type=int, default=6, help="at least 2")
    chosen, device = parser.parse_args(words), best_device()
    shape = (chosen.classes, chosen.crop)
    model = build("resnet18", 512, seed=0).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    loss, generator = Triplet(STORED, 512, miner="distance_weighted"), torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        split = noise(Path(place), chosen.crop)
        for _ in batches(split, device, 2, *shape):  # imports, and pages of the file
            pass
        start = time.perf_counter()
        for _ in batches(split, device, chosen.steps, *shape):
            pass
        making = (time.perf_counter() - start) / chosen.steps
        waited, steps, before = [], [], time.perf_counter()
        for images, labels in batches(split, device, chosen.steps, *shape):
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
    wait, step = (
        sum(waited[1:]) / (chosen.steps - 1),
        sum(steps[1:]) / (chosen.steps - 1),
    )  # nothing hides the first batch
    print(f"ResNet-18, {chosen.classes * IMAGES_PER_CLASS} images of {chosen.crop} pixels, on {device}")
    print(f"making a batch  {making * 1e3:9.1f} ms")
    print(f"a standard step {step * 1e3:9.1f} ms, of which it waits {wait * 1e3:.1f} ms")
    print(f"wait / making: {wait / making:.4f}   wait / step: {wait / step:.4f}")
    return {"training step, with its wait for a batch / without": step / (step - wait)}


if __name__ == "__main__":
    main()
