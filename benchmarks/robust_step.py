"""What a robust training step costs relative to a standard one, beside the least that it could cost.

The floor of k PGD steps is k * (F + B_in) + 2 * (F + B): k forward passes with a backward pass to the images alone,
then a forward and a full backward pass of the clean and of the perturbed batch. All are timed in turns in this run, so
that only ratios matter.
"""

import statistics
import time
from collections.abc import Callable

import torch

from dml.attacks.balls import Linf
from dml.attacks.optimisers.pgd import pgd
from dml.defenses.base import Defense
from dml.defenses.robust import Robust
from dml.defenses.standard import Standard
from dml.losses.triplet import Triplet
from dml.models.embedder import build

BATCH, SIDE, ROUNDS = 100, 32, 7


def main() -> None:
    """Print a table of medians and ratios."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 3, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) // 4
    model = build("conv4", 128, seed=0).train()
    loss = Triplet(BATCH // 4, 128, miner="distance_weighted")

    def train_step(defense: Defense) -> None:
        model.zero_grad(set_to_none=True)
        defense(model, images, labels, loss, generator).mean().backward()

    def bare_input_step() -> None:
        changed = images.clone().requires_grad_(True)
        torch.autograd.grad(model(changed).sum(), changed)

    def bare_full_step() -> None:
        model.zero_grad(set_to_none=True)
        model(images).sum().backward()

    def attack(steps: int) -> None:
        pgd(
            images,
            lambda changed: model(changed).sum(1),
            Linf(8 / 255),
            steps=steps,
            step_size=0.01,
            best=False,
            generator=generator,
        )

    work: dict[str, Callable[[], None]] = {
        "F + B": bare_full_step,
        "F + B_in": bare_input_step,
        "pgd, 10 steps": lambda: attack(10),
        "standard": lambda: train_step(Standard()),
    }
    work |= {f"robust, k={k}": lambda k=k: train_step(Robust(steps=k)) for k in (1, 4, 10)}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(ROUNDS + 2):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if round_ >= 2:  # the first two warm up
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"conv4, {BATCH} images of {SIDE} px, {torch.get_num_threads()} threads, median of {ROUNDS}")
    print(f"{'':16}{'ms':>8}{'/ standard':>12}{'/ floor':>9}")
    for name, value in median.items():
        floor = ""
        if name.startswith("robust"):
            k = int(name.split("=")[1])
            floor = f"{value / (k * median['F + B_in'] + 2 * median['F + B']):9.2f}"
        if name.startswith("pgd"):
            floor = f"{value / (10 * median['F + B_in']):9.2f}"
        print(f"{name:16}{value * 1e3:8.1f}{value / median['standard']:12.2f}{floor}")


if __name__ == "__main__":
    main()
