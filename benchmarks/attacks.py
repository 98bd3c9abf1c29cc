"""The cost of an attack step relative to a bare loop and to other libraries, and the memory that an attack takes.

The bare loop does the same forward and backward pass to the images and nothing else. An attack that keeps the best
point needs one more forward pass than it has steps, for the last point. The first table attacks the 1-NN margin. Other
libraries attack classifiers, so the second attacks the cross-entropy of similarities to class centres, with a radius
that breaks no image, since some libraries stop where one is broken. All are timed in turns in this run, so only ratios
matter. Memory is what an attack adds at its peak, in a process per gallery, to what the process held before: the
gallery's embeddings, the model and the libraries.
"""

import argparse
import importlib.util
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from benchmarks.measure import apart, held, in_turns, peak
from dml.attacks.balls import Linf
from dml.attacks.objectives.margin import margin_objective
from dml.attacks.optimisers.apgd import apgd
from dml.attacks.optimisers.pgd import pgd
from dml.models.embedder import build
from dml.retrieval.gallery import Gallery, Queries, at_once

QUERIES, SIDE, DIMENSION, STEPS, ROUNDS = 100, 32, 128, 40, 3
GALLERIES = (2_000, 10_000, 60_000)
EPS = 1e-5  # of attacks on a classifier: no image breaks


class Classifier(nn.Module):
    """Images -> similarities to class centres, as logits."""

    def __init__(self, model: nn.Module, classes: int = 100) -> None:
        super().__init__()
        self.model = model
        drawn = torch.randn(classes, DIMENSION, generator=torch.Generator().manual_seed(2))
        self.register_buffer("centres", normalize(drawn, dim=1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes)."""
        return self.model(images) @ self.centres.T / 0.1


def problem(items: int, queries: int) -> tuple[nn.Module, Tensor, Queries, Gallery]:
    """Return a model, images, their queries, and a gallery of random embeddings."""
    draw = torch.Generator().manual_seed(0)
    count = at_once(Gallery(torch.empty(items, 0), torch.empty(items)), queries)
    images = torch.rand(count, 3, SIDE, SIDE, generator=draw).contiguous(memory_format=torch.channels_last)
    embeddings = normalize(torch.randn(items, DIMENSION, generator=draw), dim=1)
    gallery = Gallery(embeddings, torch.arange(items) % (items // 20))
    queries = Queries(gallery.labels[:count], torch.arange(count), torch.arange(count))
    return build("conv4", DIMENSION, seed=0).eval(), images, queries, gallery


def ours(
    images: Tensor, objective: Callable[[Tensor], Tensor], eps: float, steps: int
) -> dict[str, Callable[[], object]]:
    """Return the bare loop and this repository's attacks on an objective."""
    draw, ball = torch.Generator().manual_seed(1), Linf(eps)
    given = {"steps": steps, "step_size": eps / 3, "generator": draw}

    def bare() -> None:
        perturbed = images.clone()
        for _ in range(steps):
            perturbed.requires_grad_(True)
            torch.autograd.grad(objective(perturbed).sum(), perturbed)
            perturbed = perturbed.detach()

    return {
        "bare loop": bare,
        "pgd, last point": lambda: pgd(images, objective, ball, best=False, **given),
        "pgd, best point": lambda: pgd(images, objective, ball, **given),
        "apgd": lambda: apgd(images, objective, ball, steps=steps, generator=draw),
    }


def peers(classifier: nn.Module, images: Tensor, labels: Tensor, steps: int) -> dict[str, Callable[[], object]]:
    """Return the attacks of those other libraries that are installed; print a line for each that is not."""
    work: dict[str, Callable[[], object]] = {}
    if importlib.util.find_spec("adv_lib"):
        from adv_lib.attacks import apgd as adv_lib_apgd
        from adv_lib.attacks import pgd_linf

        work["adv-lib pgd"] = lambda: pgd_linf(classifier, images, labels, EPS, steps=steps, absolute_step_size=EPS / 3)
        work["adv-lib apgd"] = lambda: adv_lib_apgd(
            classifier, images, labels, EPS, float("inf"), n_iter=steps, loss_function="ce"
        )
    else:
        print("adversarial-library is not installed: its attacks are left out")
    if importlib.util.find_spec("torchattacks"):
        import torchattacks

        found = torchattacks.PGD(classifier, eps=EPS, alpha=EPS / 3, steps=steps)
        work["torchattacks pgd"] = lambda: found(images, labels)
        auto = torchattacks.APGD(classifier, eps=EPS, steps=steps, loss="ce")
        work["torchattacks apgd"] = lambda: auto(images, labels)
    else:
        print("torchattacks is not installed: its attacks are left out")
    return work


def told(work: dict[str, Callable[[], object]], steps: int, rounds: int) -> dict[str, float]:
    """Print milliseconds per step, and the ratio to the bare loop; return the milliseconds."""
    median = {name: seconds / steps * 1e3 for name, seconds in in_turns(work, rounds).items()}
    print(f"{'':18}{'ms/step':>10}{'/ bare loop':>13}")
    for name, value in median.items():
        print(f"{name:18}{value:10.1f}{value / median['bare loop']:13.2f}")
    return median


def speed(queries: int, steps: int, rounds: int) -> dict[str, float]:
    """Print both tables of time; return the ratios."""
    model, images, asked, gallery = problem(GALLERIES[0], queries)
    threads = torch.get_num_threads()
    print(f"{len(images)} images of {SIDE} px, gallery of {len(gallery)}, {steps} steps, {threads} threads")
    margin = told(ours(images, margin_objective(model, asked, gallery), 0.03, steps), steps, rounds)
    print("\ncross-entropy of a classifier")
    classifier = Classifier(model).eval()
    labels = classifier(images).argmax(1)  # what it says, so that no attack leaves an image out
    work = ours(images, lambda changed: cross_entropy(classifier(changed), labels, reduction="none"), EPS, steps)
    others = peers(classifier, images, labels, steps)
    found = told(work | others, steps, rounds)
    ratios = {f"{name} on the margin / bare loop": margin[name] / margin["bare loop"] for name in list(margin)[1:]}
    for name in others:
        own = "apgd" if name.endswith("apgd") else "pgd, last point"
        ratios[f"{own} / {name}"] = found[own] / found[name]
    return ratios


def memory(items: int, queries: int, steps: int) -> None:
    """Print the megabytes that an attack adds to those this process held before."""
    model, images, asked, gallery = problem(items, queries)
    before = held()
    generator = torch.Generator().manual_seed(0)
    apgd(images, margin_objective(model, asked, gallery), Linf(0.03), steps=steps, generator=generator)
    print(f"{items:10,}{gallery.embeddings.nbytes / 2**20:16.0f}{len(images):10}{peak() - before:14.0f}")


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Print all tables; return the ratios of times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which the median counts")
    parser.add_argument("--galleries", nargs="*", type=int, default=GALLERIES, help="to measure the memory with")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args(words)
    if chosen.one:
        memory(chosen.one, chosen.queries, chosen.steps)
        return {}
    ratios = speed(chosen.queries, chosen.steps, chosen.rounds)
    print(f"\n{'gallery':>10}{'embeddings, MB':>16}{'queries':>10}{'attack, MB':>14}", flush=True)
    options = ("--queries", str(chosen.queries), "--steps", str(chosen.steps))
    for items in chosen.galleries:
        print(apart("attacks", *options, "--one", str(items)), end="", flush=True)
    return ratios


if __name__ == "__main__":
    main()
