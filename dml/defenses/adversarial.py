"""What all defences with a PGD adversary share: its radius, its steps, and their growth over the training."""

import torch
from torch import Tensor

from dml.attacks.balls import Linf
from dml.attacks.objectives.base import Objective
from dml.attacks.optimisers.pgd import pgd
from dml.common.checks import at_least, linf_radius
from dml.defenses.base import Defense


class Adversarial(Defense):
    """A defence whose adversary runs PGD from a uniform random start in the l-inf ball.

    Args:
        eps: radius of the ball, of pixels in [0, 1].
        steps: PGD steps.
        step_size: of a step, pixel units; ``2 * eps / steps`` if None.
        ramp: share of the training over which the radius, and the step with it, grows from 0.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(self, eps: float, steps: int, step_size: float | None = None, ramp: float = 0.0) -> None:
        super().__init__()
        linf_radius("eps", eps)
        at_least("steps", steps, 1)
        if step_size is not None and not step_size > 0:
            raise ValueError(f"step_size is {step_size}; it must be above 0")
        if not 0 <= ramp <= 1:
            raise ValueError(f"ramp is {ramp}; it must lie between 0 and 1")
        self.eps = eps
        self.steps = steps
        self.step_size = 2 * eps / steps if step_size is None else step_size
        self.ramp = ramp

    def score(self, scores: dict[str, float]) -> float:
        """Select the epoch by adversarial R@1."""
        return scores["adversarial"]

    def reach(self, progress: float) -> tuple[float, float]:
        """Return the radius of the ball and the step size, in pixel units, at this progress (0 to 1)."""
        grown = min(1.0, progress / self.ramp) if self.ramp else 1.0
        return grown * self.eps, grown * self.step_size

    def perturb(self, images: Tensor, objective: Objective, generator: torch.Generator, progress: float) -> Tensor:
        """Return images (B, 3, H, W) perturbed to raise the objective.

        Call it with the model in evaluation mode (:func:`dml.models.embedder.evaluating`), as an attacker would see it.

        Args:
            images: clean, in [0, 1].
            objective: images -> (B,). Only its gradient counts: the last point is kept, not the best.
            generator: of the random start.
            progress: share of the training that is done.
        """
        radius, step = self.reach(progress)
        given = {"steps": self.steps, "step_size": step, "best": False, "generator": generator}
        return pgd(images, objective, Linf(radius), **given)
