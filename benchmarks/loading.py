"""How long a training step waits for its batch: random-resized crops of memory-mapped pictures, ResNet-18 at 128 px.

Beside it stands what the making of a batch takes by itself, which is what a step would wait without other threads.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dml.data import Pictures, Split
from dml.data.loading import training_batches
from dml.defenses import Standard
from dml.losses import Triplet, TupleLoss
from dml.losses.mining import distance_weighted
from dml.models.embedder import best_device, build
from dml.training.schedule import Schedule

CLASSES, IMAGES, HEIGHT, WIDTH, CROP, STEPS = 112, 10, 146, 195, 128, 6
SCHEDULE = Schedule(epochs=1, batches=STEPS, classes=56, images_per_class=2, crop=CROP, flip=True)


def pictures(folder: Path) -> Split:
    """Noise in a file, of the shape of photographs."""
    count, size = CLASSES * IMAGES, HEIGHT * WIDTH * 3
    np.random.default_rng(0).integers(0, 256, count * size, dtype=np.uint8).tofile(folder / "images.bin")
    index = np.stack([np.arange(count) * size, np.full(count, HEIGHT), np.full(count, WIDTH)], axis=1)
    stored = Pictures(np.memmap(folder / "images.bin", np.uint8, "r"), index, CROP)
    return Split(stored, np.repeat(np.arange(CLASSES), IMAGES), [str(label) for label in range(CLASSES)])


def batches(split: Split, device: torch.device, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """As training draws them."""
    return training_batches(split, SCHEDULE, count, device, np.random.default_rng(0))


def main() -> None:
    """Print seconds a batch and a step, and the share of the step that waits."""
    device = best_device()
    model = build("resnet18", 512, seed=0).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    loss, generator = TupleLoss(distance_weighted, Triplet()), torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        split = pictures(Path(place))
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
    wait, step = sum(waited[1:]), sum(steps[1:])  # the first batch has nothing to hide behind
    print(f"ResNet-18, {SCHEDULE.classes * SCHEDULE.images_per_class} pictures of {CROP} px, on {device}")
    print(f"a batch by itself {making * 1e3:9.1f} ms")
    print(f"a standard step   {step / (STEPS - 1) * 1e3:9.1f} ms, of which {100 * wait / step:.2f}% wait for the batch")


if __name__ == "__main__":
    main()
