"""How an epoch of training is judged: on held-out training classes, never on test classes."""

from collections.abc import Callable

from torch import nn

from dml.attacks import Linf, pgd
from dml.attacks.objectives import margin_objective
from dml.datasets import Split
from dml.models import device_of, evaluating
from dml.randomness import torch_generator
from dml.retrieval import Search
from dml.sampling import sample_rows, to_float


def validator(split: Split, *, queries: int, eps: float, steps: int, seed: int) -> Callable[[nn.Module], dict]:
    """Scores of a model on held-out training classes: natural R@1, and R@1 left by margin PGD.

    The attack is short: it ranks the epochs of one training, and is no measure of robustness.
    """
    rows = sample_rows(min(queries, len(split)), len(split), seed)

    def validate(model: nn.Module) -> dict[str, float]:
        with evaluating(model):
            search = Search.over(model, split)
            chosen = search.queries(rows)
            images = pgd(
                to_float(split.images[rows], device_of(model)),
                margin_objective(model, chosen, search.gallery),
                Linf(eps),
                steps=steps,
                step_size=2 * eps / steps,
                best=False,
                generator=torch_generator(seed, "validation attack"),
            )
            return {
                "natural": float(search.natural().r1.float().mean()),
                "adversarial": float((search.margin(images, chosen) < 0).float().mean()),
            }

    return validate
