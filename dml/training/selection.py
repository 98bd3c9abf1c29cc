"""How an epoch of training is judged: on held-out training classes, never on test classes."""

import math
from collections.abc import Callable

import numpy as np
from torch import nn

from dml.attacks.balls import Linf
from dml.attacks.objectives.margin import margin_objective
from dml.attacks.optimisers.pgd import pgd
from dml.common.randomness import numpy_generator, torch_generator
from dml.data.base import Split
from dml.models.embedder import evaluating
from dml.retrieval.index import Search

CHUNK = 256  # queries attacked at a time
PIXELS = CHUNK * 112**2  # or as many as have this many pixels: 64 at 224 x 224, where ResNet-50 keeps 90 MB for each


def validator(
    split: Split, *, queries: int, eps: float, steps: int, seed: int
) -> Callable[[nn.Module], dict[str, float]]:
    """Return a function that scores a model on held-out training classes.

    The scores are ``natural``, R@1 of all images, and ``adversarial``, R@1 of some queries after PGD on the margin. The
    attack is short: it ranks the epochs of one training and does not measure robustness.

    Args:
        split: images of the held-out classes.
        queries: how many to attack; all if there are fewer.
        eps: radius of the l-inf ball, of pixels in [0, 1].
        steps: of PGD, each ``2 * eps / steps`` long.
        seed: of the choice of queries and of the random starts, which are the same in every epoch.
    """
    count = min(queries, len(split))
    size = min(CHUNK, max(1, PIXELS // math.prod(split.images.shape[1:3])))
    rows = np.sort(numpy_generator(seed, "attacked queries").choice(len(split), count, replace=False))

    def validate(model: nn.Module) -> dict[str, float]:
        survivors = 0
        with evaluating(model):
            search, generator = Search.over(model, split), torch_generator(seed, "validation attack")
            for first in range(0, count, size):
                chunk = rows[first : first + size]
                chosen = search.queries(chunk)
                images = pgd(
                    search.images(chunk),
                    margin_objective(model, chosen, search.gallery),
                    Linf(eps),
                    steps=steps,
                    step_size=2 * eps / steps,
                    best=False,
                    generator=generator,
                )
                survivors += int((search.margin(images, chosen) < 0).sum())
            natural = float(search.natural().r1.float().mean())
        return {"natural": natural, "adversarial": survivors / count}

    return validate
