"""What a whole training by the default recipe takes with each defence, relative to standard training.

Whole: batches, gradient steps, averaged weights, and the attack on held-out classes after each epoch, which is the same
for all. Each defence trains for one epoch as `params.yaml` says, on noise in the shape of Glyphs. All are trained in
turns in this run, so that only ratios matter.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks.measure import in_turns
from dml.common.processes import to_nobody
from dml.config.load import load
from dml.data.base import Dataset, Split
from dml.pipeline.stages.train import fit_recipe

CLASSES, HELD_OUT, EACH, SIDE = 80, 20, 40, 32  # of Glyphs: classes, held-out ones, images per class, pixels
ROUNDS, BASELINE = 3, "standard"


def noise() -> Dataset:
    """Return random images in the numbers of Glyphs. No test class is needed; the held-out ones take their place."""
    draw = np.random.default_rng(0)

    def split(first: int, count: int) -> Split:
        images = draw.integers(0, 256, (count * EACH, SIDE, SIDE, 3), dtype=np.uint8)
        labels = np.repeat(np.arange(first, first + count), EACH)
        return Split(images, labels, [str(label) for label in range(CLASSES + HELD_OUT)])

    train, held_out = split(0, CLASSES), split(CLASSES, HELD_OUT)
    return Dataset(train, held_out, held_out)


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Print seconds and ratios of one epoch with each defence; return the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dataset", default="glyphs", help="whose recipe is followed")
    parser.add_argument("--loss", default="triplet")
    parser.add_argument("--defenses", nargs="+", default=("robust", "single_step"))
    parser.add_argument("--batches", type=int, help="gradient steps of the epoch; by default those of the recipe")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which the median counts")
    chosen = parser.parse_args(words)
    changes = {"epochs": 1} | ({} if chosen.batches is None else {"batches": chosen.batches})
    prefix = f"recipes.{chosen.dataset}.schedule"
    recipe = load({f"{prefix}.{key}": value for key, value in changes.items()}).recipe(chosen.dataset)
    data = noise()

    def training(defense: str) -> Callable[[], object]:
        return lambda: fit_recipe(recipe, data, chosen.loss, defense, 0, None, to_nobody, to_nobody)

    seconds = in_turns({name: training(name) for name in (BASELINE, *chosen.defenses)}, chosen.rounds)
    steps, threads = recipe.schedules[BASELINE].batches, torch.get_num_threads()
    print(f"{chosen.dataset}, {chosen.loss}: an epoch of {steps} steps, {threads} threads")
    print(f"{'':16}{'precision':>10}{'seconds':>9}{'/ standard':>12}")
    for name, value in seconds.items():
        print(f"{name:16}{recipe.schedules[name].precision:>10}{value:9.2f}{value / seconds[BASELINE]:12.2f}")
    return {f"{chosen.dataset}, {name} / {BASELINE}": seconds[name] / seconds[BASELINE] for name in chosen.defenses}


if __name__ == "__main__":
    main()
