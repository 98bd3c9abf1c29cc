"""What a whole training step takes, with all that surrounds the passes: loading, optimiser, average of the weights.

F and B are a forward and a full backward pass of the batch in training, B_in a backward pass to the images alone with
BatchNorm fixed, as attacks have it. The floor of a standard step is F + B. `robust` with k PGD steps trains on the
clean and on the perturbed batch, so that its own floor is k (F + B_in) + 2 (F + B); "one batch" is k (F + B_in) +
(F + B), which a defence that trains on the perturbed batch alone could reach. Both are of passes in float32 as training
does them. "eager" is one batch again, of the same network left as PyTorch stores it, channel by channel. A training
takes some steps, and a step's time is its share of the whole, copies of the weights at either end included. As many
passes are timed at once. All are timed in turns in this run and on the CPU, so that only ratios matter.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.measure import in_turns, model_and_numbers
from dml.common.processes import to_nobody
from dml.data.base import Split
from dml.defenses.base import Defense
from dml.defenses.robust import Robust
from dml.defenses.standard import Standard
from dml.losses.triplet import Triplet
from dml.models.bfloat16 import computed
from dml.models.embedder import Embedder, build, evaluating
from dml.training.loop import fit
from dml.training.schedule import Schedule

BATCH, EACH = 100, 4  # images of a batch and of a class in it
ROUNDS = 5  # of which the median counts
MODELS = (("conv4", 32, 20), ("resnet18", 64, 4))  # backbone, side of an image, steps of a training
STEPS = (1, 4, 10)
Precision = Literal["float32", "bfloat16"]


def passes(model: nn.Module, network: Callable[[Tensor], Tensor], images: Tensor) -> dict[str, Callable[[], object]]:
    """Return a full pass and one to the images alone.

    Args:
        model: holds the weights.
        network: images -> embeddings, of these weights.
        images: (B, 3, H, W).
    """

    def full() -> None:
        model.zero_grad(set_to_none=True)
        network(images).sum().backward()

    def inward() -> None:
        changed = images.clone().requires_grad_(True)
        with evaluating(model):
            torch.autograd.grad(network(changed).sum(), changed)

    return {"F + B": full, "F + B_in": inward}


def repeated(call: Callable[[], object], count: int) -> Callable[[], object]:
    """Return what makes a call ``count`` times: caches and memory are then as warm as in a training."""

    def calls() -> None:
        for _ in range(count):
            call()

    return calls


def training(
    model: Embedder, split: Split, defense: Defense, precision: Precision, together: int
) -> Callable[[], object]:
    """Return what trains a copy of a model for ``together`` steps, and goes on with it at each call."""
    model = copy.deepcopy(model)
    schedule = Schedule(1, together, len(split.class_names), EACH, averaging=0.98, shift=2, precision=precision)
    loss = Triplet(schedule.classes, model.dimension, miner="distance_weighted")
    scores = {"natural": 0.0, "adversarial": 0.0}
    given = {"validate": lambda averaged: scores, "report": to_nobody, "timing": to_nobody}
    return lambda: fit(model, split, loss, defense, schedule, seed=0, **given)


def work(backbone: str, side: int, together: int, batch: int, steps: Sequence[int]) -> dict[str, Callable[[], object]]:
    """Return what is timed: ``together`` passes, and trainings of as many steps."""
    generator, classes = torch.Generator().manual_seed(0), batch // EACH
    stored = torch.randint(0, 256, (2 * batch, side, side, 3), generator=generator, dtype=torch.uint8).numpy()
    split = Split(stored, torch.arange(2 * batch).remainder(classes).numpy(), [str(name) for name in range(classes)])
    images = torch.rand(batch, 3, side, side, generator=generator)
    model = build(backbone, 128, seed=0).train()
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)

    def eager(given: Tensor) -> Tensor:
        return nn.functional.normalize(plain.head(plain.backbone((given - plain.mean) / plain.std)), dim=1)

    found = {f"eager {name}": repeated(call, together) for name, call in passes(plain, eager, images).items()}
    last = passes(model, model, images.contiguous(memory_format=torch.channels_last))
    found |= {name: repeated(call, together) for name, call in last.items()}
    precisions: tuple[Precision, ...] = ("float32", "bfloat16") if computed(images.device) else ("float32",)
    for precision in precisions:
        found[f"standard, {precision}"] = training(model, split, Standard(), precision, together)
        for k in steps:
            found[f"robust, k={k}, {precision}"] = training(model, split, Robust(steps=k), precision, together)
    return found


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Print a table of medians and ratios per model; return the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", type=model_and_numbers, default=MODELS, help="backbone:side:steps")
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, help="of PGD")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"images, a multiple of {EACH}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which the median counts")
    chosen, ratios = parser.parse_args(words), {}
    for backbone, side, together in chosen.models:
        taken_by = in_turns(work(backbone, side, together, chosen.batch, chosen.steps), chosen.rounds)
        median = {name: seconds / together for name, seconds in taken_by.items()}
        print(f"{backbone}, {chosen.batch} images of {side} px, {together} steps, {torch.get_num_threads()} threads")
        print(f"{'':26}{'ms':>9}{'/ floor':>9}{'/ one batch':>13}{'/ eager':>9}", flush=True)
        for name, value in median.items():
            if "F + B" in name:
                print(f"{name:26}{value * 1e3:9.1f}")
                continue
            k = int(name.partition("k=")[2].partition(",")[0] or 0)
            floor = k * median["F + B_in"] + (1 + (k > 0)) * median["F + B"]
            one = k * median["F + B_in"] + median["F + B"]
            eager = k * median["eager F + B_in"] + median["eager F + B"]
            told = [value / reference for reference in (floor, one, eager)]
            print(f"{name:26}{value * 1e3:9.1f}{told[0]:9.2f}{told[1]:13.2f}{told[2]:9.2f}", flush=True)
            case = f"{backbone}, {side} px, {name}"
            ratios |= {f"{case} / floor": told[0], f"{case} / eager": told[2]}
    return ratios


if __name__ == "__main__":
    main()
