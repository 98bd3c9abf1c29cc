"""Attacks: balls (how far), optimisers (how), objectives (towards what), methods (the two together, on queries)."""

from dml.attacks.balls import L2, Ball, Linf
from dml.attacks.optimisers.apgd import apgd
from dml.attacks.optimisers.carlini_wagner import carlini_wagner
from dml.attacks.optimisers.fgsm import fgsm, r_fgsm
from dml.attacks.optimisers.nes import nes
from dml.attacks.optimisers.pgd import Objective, falling_steps, pgd
from dml.attacks.optimisers.square import square

__all__ = [
    "L2",
    "Ball",
    "Linf",
    "Objective",
    "apgd",
    "carlini_wagner",
    "falling_steps",
    "fgsm",
    "nes",
    "pgd",
    "r_fgsm",
    "square",
]
