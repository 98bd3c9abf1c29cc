"""adversarial-library's Auto-PGD, through the bridge to classifier attacks: an independent check of our own attacks."""

import importlib.util
import sys
import types

import torch
from torch import Tensor, nn

from dml.attacks.balls import Ball
from dml.attacks.methods import Attack
from dml.attacks.objectives.queries import TEMPERATURE, class_logits
from dml.common.randomness import seeded_global
from dml.retrieval.index import Gallery, Queries

INSTALLED = importlib.util.find_spec("adv_lib") is not None


def by_peer_apgd(model: nn.Module, gallery: Gallery, *, steps: int, loss: str) -> Attack:
    """adversarial-library's ``apgd`` on the 1-NN logits, at its own settings.

    Args:
        model, gallery: what is attacked.
        steps: gradient steps.
        loss: ``ce`` or ``dlr``.
    """
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # imported by the library's logger, not needed here
    from adv_lib.attacks.auto_pgd import apgd

    def attack(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
        _, own = class_logits(model(images).detach(), queries, gallery)

        def logits(pictures: Tensor) -> Tensor:
            # -1e3 stands for the logit of a class that holds only the query: the library subtracts logits.
            return class_logits(model(pictures), queries, gallery)[0].clamp_min(-1e3) / TEMPERATURE

        norm = {"linf": float("inf"), "l2": 2}[ball.norm]
        seed = int(torch.randint(2**31, (), generator=generator))
        # The library draws from the global generators, on the pictures' own device.
        with torch.random.fork_rng(enabled=images.is_cuda), seeded_global(seed, "adversarial-library"):
            if images.is_cuda:
                torch.cuda.manual_seed_all(seed)
            found = apgd(logits, images, own, ball.eps, norm, n_iter=steps, loss_function=loss)
        return ball.project(found.detach(), images)

    return attack
