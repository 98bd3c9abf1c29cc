"""What a robust training step costs relative to a standard one, beside the least that it could cost.

F and B are a forward and a full backward pass of the batch, B_in a backward pass to the images alone. A standard step
costs at least F + B. The adversary of k PGD steps costs at least k (F + B_in). `robust` then trains on the clean and on
the perturbed batch, so that its own floor, "two batches", is k (F + B_in) + 2 (F + B). A defence that trains on the
perturbed batch alone has the floor "one batch", k (F + B_in) + (F + B). All are timed in turns in this run, so that
only ratios matter.
"""

import argparse
from collections.abc import Callable, Sequence

import torch

from benchmarks.measure import in_turns, model_and_numbers
from dml.attacks.balls import Linf
from dml.attacks.optimisers.pgd import pgd
from dml.defenses.base import Defense
from dml.defenses.robust import Robust
from dml.defenses.standard import Standard
from dml.losses.triplet import Triplet
from dml.models.embedder import build

BATCH, ROUNDS = 100, 7
MODELS = (("conv4", 32), ("resnet18", 64))  # backbone, side of an image
STEPS = (1, 4, 10)


def work(backbone: str, side: int, batch: int, steps: Sequence[int]) -> dict[str, Callable[[], None]]:
    """Return what is timed: passes, attacks and training steps."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) // 4
    model = build(backbone, 128, seed=0).train()
    loss = Triplet(-(-batch // 4), 128, miner="distance_weighted")

    def train_step(defense: Defense) -> None:
        model.zero_grad(set_to_none=True)
        defense(model, images, labels, loss, generator).mean().backward()

    def bare_input_step() -> None:
        changed = images.clone().requires_grad_(True)
        torch.autograd.grad(model(changed).sum(), changed)

    def bare_full_step() -> None:
        model.zero_grad(set_to_none=True)
        model(images).sum().backward()

    def attack(count: int) -> None:
        given = {"steps": count, "step_size": 0.01, "best": False, "generator": generator}
        pgd(images, lambda changed: model(changed).sum(1), Linf(8 / 255), **given)

    found: dict[str, Callable[[], None]] = {"F + B": bare_full_step, "F + B_in": bare_input_step}
    found |= {f"pgd, k={k}": lambda k=k: attack(k) for k in steps[-1:]}
    found["standard"] = lambda: train_step(Standard())
    return found | {f"robust, k={k}": lambda k=k: train_step(Robust(steps=k)) for k in steps}


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Print a table of medians and ratios per model; return the ratios to the floors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", type=model_and_numbers, default=MODELS, help="backbone:side")
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, help="of PGD")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which the median counts")
    chosen, ratios = parser.parse_args(words), {}
    for backbone, side in chosen.models:
        median = in_turns(work(backbone, side, chosen.batch, chosen.steps), chosen.rounds)
        full, inward = median["F + B"], median["F + B_in"]
        print(f"{backbone}, {chosen.batch} images of {side} px, {torch.get_num_threads()} threads")
        print(f"{'':16}{'ms':>9}{'/ standard':>12}{'/ floor':>9}{'/ one batch':>13}  floor")
        for name, value in median.items():
            kind, _, k = name.partition(", k=")
            adversary = int(k or 0) * inward
            floors = {
                "standard": (full, "F + B"),
                "pgd": (adversary, "k (F + B_in)"),
                "robust": (adversary + 2 * full, "two batches: k (F + B_in) + 2 (F + B)"),
            }
            cells = ""
            if kind in floors:
                floor, told = floors[kind]
                one = f"{value / (adversary + full):13.2f}" if kind == "robust" else f"{'':13}"
                cells = f"{value / floor:9.2f}{one}  {told}"
                ratios[f"{backbone}, {side} px, {name} / floor"] = value / floor
            print(f"{name:16}{value * 1e3:9.1f}{value / median['standard']:12.2f}{cells}", flush=True)
    print("one batch: k (F + B_in) + (F + B), the floor of training on the perturbed batch alone")
    return ratios


if __name__ == "__main__":
    main()
