"""Attacks: balls (how far), optimisers (how), objectives (towards what), methods (the two together, on queries)."""

from dml.attacks.apgd import apgd
from dml.attacks.balls import L2, Ball, Linf
from dml.attacks.carlini_wagner import carlini_wagner
from dml.attacks.fgsm import fgsm, r_fgsm
from dml.attacks.nes import nes
from dml.attacks.pgd import Objective, falling_steps, pgd
from dml.attacks.square import square

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
