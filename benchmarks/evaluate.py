"""The cost of `dml.evaluate` relative to a bare loop of the same passes, and its memory as the gallery grows.

The bare loop repeats the passes that the evaluation made, each with as many images, forwards or forwards and backwards,
and does nothing else. Both are timed in seconds of the processor on one thread, which other programs hardly disturb.
What is above 1 pays for similarities to the gallery, optimisers, exact scores, gates and tables. Controls are separate
models and are left out. At the radius attacked most queries survive, as they do with a robust model: those that break
at once leave small batches.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

import dml
from benchmarks.measure import apart, held, model_and_numbers, peak
from dml.models.embedder import build

EPS = 0.5 / 255  # most queries of these models survive it, as those of a robust model do
MODELS = (("conv4", 32, 200), ("resnet18", 64, 40))  # backbone, side of an image, attacked queries
IMAGES = 2_000  # of the search in which time is measured
GALLERIES = (6_000, 20_000, 60_502)
DIMENSION = 512


def dataset(items: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images of classes of ten; images of a class share a pattern."""
    draw = np.random.default_rng(0)
    patterns = draw.integers(0, 256, (items // 10 + 1, side, side, 3))
    labels = np.arange(items) % len(patterns)
    noise = draw.integers(-40, 41, (items, side, side, 3))
    return (patterns[labels] + noise).clip(0, 255).astype(np.uint8), labels


def ratio(backbone: str, side: int, queries: int, items: int) -> float:
    """Print seconds of `dml.evaluate` and of the bare loop, and their ratio; return it."""
    model = build(backbone, 128, seed=0).eval()
    images, labels = dataset(items, side)
    settings = {"eps": EPS, "controls": (), "device": "cpu", "report": lambda line: None}
    dml.evaluate(model, images, labels, limit=2, **settings)  # the first call imports what it needs
    passes: list[tuple[int, bool]] = []
    hook = model.register_forward_hook(lambda _, given, found: passes.append((len(given[0]), found.requires_grad)))
    start = time.process_time()
    result = dml.evaluate(model, images, labels, limit=queries, **settings)
    whole = time.process_time() - start
    hook.remove()
    forward, backward = int(result.cost["forward"]), int(result.cost["backward"])
    least = bare(model, side, passes)
    print(f"{backbone:10}{side:6}{queries:9}{forward:10}{backward:10}{whole:10.1f}{least:10.1f}{whole / least:8.2f}")
    return whole / least


def bare(model: nn.Module, side: int, passes: Sequence[tuple[int, bool]]) -> float:
    """Return the processor's seconds for passes, each of so many images, with or without one back to the images."""
    images = torch.rand(max(size for size, _ in passes), 3, side, side)
    start = time.process_time()
    for size, back in passes:
        moved = images[:size].requires_grad_(back)
        with torch.set_grad_enabled(back):
            found = model(moved)
        if back:
            torch.autograd.grad(found.sum(), moved)
    return time.process_time() - start


def memory(items: int) -> None:
    """Print the megabytes that an evaluation adds at its peak to those this process held before, and the gallery's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 3, DIMENSION)).eval()
    images, labels = dataset(items, 8)
    settings = {"attacks": {"soft_margin": {"steps": 5, "classes": 2, "target_steps": 5}}, "gate_tries": 10}
    before = held()
    dml.evaluate(model, images, labels, suite=settings, limit=100, controls=(), device="cpu", report=lambda line: None)
    added = peak() - before
    gallery = items * DIMENSION * 4 / 2**20
    print(f"{items:10,}{gallery:15.0f}{added:12.0f}{added - gallery:21.0f}")


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Print both tables; return the ratios of times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", type=model_and_numbers, default=MODELS, help="backbone:side:queries")
    parser.add_argument("--images", type=int, default=IMAGES, help="of the search in which time is measured")
    parser.add_argument("--galleries", nargs="*", type=int, default=GALLERIES, help="to measure the memory with")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args(words)
    torch.set_num_threads(1)
    if chosen.one:
        memory(chosen.one)
        return {}
    print(
        f"{'model':10}{'side':>6}{'queries':>9}{'forward':>10}{'backward':>10}{'dml, s':>10}{'bare, s':>10}{'ratio':>8}"
    )
    ratios = {
        f"{backbone}, {side} px, dml.evaluate / bare loop": ratio(backbone, side, queries, chosen.images)
        for backbone, side, queries in chosen.models
    }
    print(f"\n{'gallery':>10}{'embedded, MB':>15}{'added, MB':>12}{'beyond gallery, MB':>21}", flush=True)
    for items in chosen.galleries:
        print(apart("evaluate", "--one", str(items)), end="", flush=True)
    return ratios


if __name__ == "__main__":
    main()
