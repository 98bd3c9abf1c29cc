"""Attacks: balls (how far), pgd (how), objectives (towards what), suite (which of them, and the worst of all)."""

from dml.attacks.balls import L2, Ball, Linf
from dml.attacks.pgd import Objective, falling_steps, pgd

__all__ = ["L2", "Ball", "Linf", "Objective", "falling_steps", "pgd"]
