"""The cost of an attack step relative to a bare loop, and the memory an attack takes as the gallery grows.

The bare loop does the same forward and backward pass to the images and nothing else. All are timed in turns in this
run, so only ratios matter. Memory is the peak of a separate process for each gallery, less what that process held
before the attack: the gallery's embeddings, the model and the libraries.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from dml.attacks.balls import Linf
from dml.attacks.objectives.margin import margin_objective
from dml.attacks.optimisers.apgd import apgd
from dml.attacks.optimisers.pgd import pgd
from dml.models.embedder import build
from dml.retrieval.gallery import Gallery, Queries, at_once

QUERIES, SIDE, STEPS, ROUNDS = 100, 32, 10, 9
GALLERIES = (2_000, 10_000, 60_000)


def problem(items: int, dimension: int = 128) -> tuple[torch.nn.Module, torch.Tensor, Queries, Gallery]:
    """Return a model, images, their queries, and a gallery of random embeddings."""
    draw = torch.Generator().manual_seed(0)
    count = at_once(Gallery(torch.empty(items, 0), torch.empty(items)), QUERIES)
    images = torch.rand(count, 3, SIDE, SIDE, generator=draw).contiguous(memory_format=torch.channels_last)
    embeddings = torch.nn.functional.normalize(torch.randn(items, dimension, generator=draw), dim=1)
    gallery = Gallery(embeddings, torch.arange(items) % (items // 20))
    queries = Queries(gallery.labels[:count], torch.arange(count), torch.arange(count))
    return build("conv4", dimension, seed=0).eval(), images, queries, gallery


def speed() -> None:
    """Print milliseconds per step, and the ratio to the bare loop."""
    model, images, queries, gallery = problem(GALLERIES[0])
    objective = margin_objective(model, queries, gallery)
    draw = torch.Generator().manual_seed(1)

    def bare() -> None:
        perturbed = images.clone()
        for _ in range(STEPS):
            perturbed.requires_grad_(True)
            torch.autograd.grad(objective(perturbed).sum(), perturbed)
            perturbed = perturbed.detach()

    work: dict[str, Callable[[], object]] = {
        "bare loop": bare,
        "pgd, last point": lambda: pgd(
            images, objective, Linf(0.03), steps=STEPS, step_size=0.01, best=False, generator=draw
        ),
        "pgd, best point": lambda: pgd(images, objective, Linf(0.03), steps=STEPS, step_size=0.01, generator=draw),
        "apgd": lambda: apgd(images, objective, Linf(0.03), steps=STEPS, generator=draw),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(ROUNDS + 2):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if round_ >= 2:  # the first two warm up
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) / STEPS * 1e3 for name, values in seconds.items()}
    print(f"{QUERIES} images of {SIDE} px, gallery of {GALLERIES[0]}, {torch.get_num_threads()} threads")
    print(f"{'':18}{'ms/step':>10}{'/ bare loop':>13}")
    for name, value in median.items():
        print(f"{name:18}{value:10.1f}{value / median['bare loop']:13.2f}")


def memory(items: int) -> None:
    """Print the megabytes that an attack adds to those this process held before."""
    model, images, queries, gallery = problem(items)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    apgd(
        images,
        margin_objective(model, queries, gallery),
        Linf(0.03),
        steps=STEPS,
        generator=torch.Generator().manual_seed(0),
    )
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{items:10,}{gallery.embeddings.nbytes / 2**20:16.0f}{len(images):10}{added / 2**10:14.0f}", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gallery", type=int, help="measure memory in this process with a gallery of that size")
    chosen = parser.parse_args()
    if chosen.gallery:
        memory(chosen.gallery)
        return
    speed()
    print(f"\n{'gallery':>10}{'embeddings, MB':>16}{'queries':>10}{'attack, MB':>14}", flush=True)
    for items in GALLERIES:
        subprocess.run([sys.executable, __file__, "--gallery", str(items)], check=True)


if __name__ == "__main__":
    main()
