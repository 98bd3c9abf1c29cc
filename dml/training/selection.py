"""How an epoch of training is judged: on held-out training classes, never on test classes."""

from collections.abc import Callable

from torch import nn

from dml.attacks import Linf, pgd
from dml.attacks.objectives.queries import margin_objective
from dml.common.randomness import torch_generator
from dml.data import Split
from dml.data.sampling import sample_rows, to_float
from dml.models.embedder import device_of, evaluating
from dml.retrieval.index import Search

CHUNK = 256  # queries attacked at a time


def validator(split: Split, *, queries: int, eps: float, steps: int, seed: int) -> Callable[[nn.Module], dict]:
    """Scores of a model on held-out training classes: natural R@1, and R@1 left by margin PGD.

    The attack is short: it ranks the epochs of one training, and is no measure of robustness.
    """
    rows = sample_rows(min(queries, len(split)), len(split), seed)

    def validate(model: nn.Module) -> dict[str, float]:
        with evaluating(model):
            search, generator, standing = Search.over(model, split), torch_generator(seed, "validation attack"), 0
            for first in range(0, len(rows), CHUNK):
                chunk = rows[first : first + CHUNK]
                chosen = search.queries(chunk)
                images = pgd(
                    to_float(split.images[chunk], device_of(model)),
                    margin_objective(model, chosen, search.gallery),
                    Linf(eps),
                    steps=steps,
                    step_size=2 * eps / steps,
                    best=False,
                    generator=generator,
                )
                standing += int((search.margin(images, chosen) < 0).sum())
            return {"natural": float(search.natural().r1.float().mean()), "adversarial": standing / len(rows)}

    return validate
