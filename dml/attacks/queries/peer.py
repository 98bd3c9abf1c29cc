"""adversarial-library's Auto-PGD, through the bridge to classifier attacks: an independent check of our attacks."""

import importlib.util
import sys
import types
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.attacks.base import Attack, Run
from dml.attacks.objectives.base import TEMPERATURE
from dml.attacks.objectives.logits import class_logits
from dml.common.checks import at_least, known
from dml.common.randomness import seeded_global
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search

INSTALLED = importlib.util.find_spec("adv_lib") is not None
"""Whether adversarial-library (package ``adv-lib``) is installed."""


@dataclass(frozen=True)
class Peer(Attack):
    """adversarial-library's ``apgd`` on the 1-NN logits, with its own settings.

    Attributes:
        steps: of the run.
        loss: ``ce``, or ``dlr``, for which the gallery needs three classes.
    """

    steps: int = 50
    loss: Literal["ce", "dlr"] = "ce"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        known("loss", self.loss, ("ce", "dlr"))

    def runs(self, search: Search) -> list[Run]:
        """See :class:`dml.attacks.base.Attack`; none for ``dlr`` where the gallery holds two classes.

        Raises:
            ValueError: adversarial-library is not installed.
        """
        if not INSTALLED:
            raise ValueError("the attack peer needs adversarial-library; install the package adv-lib")
        if self.loss == "dlr" and len(search.gallery.labels.unique()) < 3:
            return []
        return [_run(search, self.steps, self.loss)]

    def doubled(self) -> "Peer":
        """See :class:`dml.attacks.base.Attack`."""
        return replace(self, steps=2 * self.steps)


def _run(search: Search, steps: int, loss: str) -> Run:
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # imported by the library, not needed here
    from adv_lib.attacks.auto_pgd import apgd

    model, gallery = search.model, search.gallery

    def run(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
        _, own = class_logits(model(images).detach(), queries, gallery)

        def logits(perturbed: Tensor) -> Tensor:
            # -1e3 for a class whose items are all ignored, since the library subtracts logits.
            return class_logits(model(perturbed), queries, gallery)[0].clamp_min(-1e3) / TEMPERATURE

        norm = {"linf": float("inf"), "l2": 2}[ball.norm]
        seed = int(torch.randint(2**31, (), generator=generator))
        # The library draws from the global generators, on the device of the images.
        with torch.random.fork_rng(enabled=images.is_cuda), seeded_global(seed, "adversarial-library"):
            if images.is_cuda:
                torch.cuda.manual_seed_all(seed)
            found = apgd(logits, images, own, ball.eps, norm, n_iter=steps, loss_function=loss)
        return ball.project(found.detach(), images)

    return run
