"""What all defences with a PGD adversary share: its radius, its steps, and their growth over the training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dml.attacks.balls import Linf
from dml.attacks.objectives.base import Objective
from dml.attacks.optimisers.pgd import pgd
from dml.common.checks import at_least, known, linf_radius
from dml.defenses.base import Defense

LAST = "last"
Start = float | Literal["last"] | None
"""Where an adversary begins; see ``noise`` of :class:`Adversarial`."""


@dataclass(frozen=True)
class Noise(Linf):
    """An l-inf ball that an adversary begins ``reach`` times as far out as it is wide, and may leave.

    One step from there is N-FGSM (de Jorge et al. 2022, algorithm 1): a single step that starts and stays inside the
    ball overfits to itself, and one from wider noise, not projected back, does not.
    """

    def __init__(self, eps: float, reach: float) -> None:
        super().__init__(eps)
        object.__setattr__(self, "reach", reach)

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return images (B, 3, H, W) with uniform noise of at most ``reach * eps``, in [0, 1]."""
        return Linf(self.reach * self.eps).start(images, generator)

    def projection(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what moves points to the nearest one of [0, 1]."""
        return lambda perturbed: perturbed.clamp(0, 1)


class Last(Linf):
    """An l-inf ball in which an adversary begins with the perturbations of the step before.

    The perturbation in a slot of the batch was made for another image there (FGSM-BP of Jia et al. 2022, "Prior-Guided
    Adversarial Initialization for Fast Adversarial Training", arXiv 2207.08859, without its regulariser).
    """

    def __init__(self, eps: float, carried: Tensor) -> None:
        super().__init__(eps)
        object.__setattr__(self, "carried", carried)

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return images with the perturbations (N, 3, H, W) of the step before, the rest at random points."""
        begun = super().start(images, generator)
        size = min(len(images), len(self.carried))
        begun[:size] = self.project(images[:size] + self.carried[:size].to(images), images[:size])
        return begun


class Adversarial(Defense):
    """A defence whose adversary runs PGD from a uniform random start in the l-inf ball.

    Args:
        eps: radius of the ball, of pixels in [0, 1].
        steps: PGD steps.
        step_size: of a step, pixel units; ``2 * eps / steps`` if None.
        ramp: share of the training over which the radius, and the step with it, grows from 0.
        noise: a number starts from uniform noise of this many times the radius, and projects onto [0, 1] alone. With
            2, and one step of ``eps``, this is N-FGSM (de Jorge et al. 2022). ``last`` starts with the perturbation
            that the same slot had in the step before (:class:`Last`). None starts at random in the ball.

    Attributes:
        carried: (N, 3, H, W) perturbations of the step before for each batch that the defence perturbs in a step; none
            unless ``noise`` is ``last``.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self, eps: float, steps: int, step_size: float | None = None, ramp: float = 0.0, noise: Start = None
    ) -> None:
        super().__init__()
        linf_radius("eps", eps)
        at_least("steps", steps, 1)
        if step_size is not None and not step_size > 0:
            raise ValueError(f"step_size is {step_size}; it must be above 0")
        if not 0 <= ramp <= 1:
            raise ValueError(f"ramp is {ramp}; it must lie between 0 and 1")
        if isinstance(noise, str):
            known("noise", noise, [LAST])
        elif noise is not None and not noise > 0:
            raise ValueError(f"noise is {noise}; it must be above 0")
        self.eps = eps
        self.steps = steps
        self.step_size = 2 * eps / steps if step_size is None else step_size
        self.ramp = ramp
        self.noise = noise
        self.carried: dict[str, Tensor] = {}

    def score(self, scores: dict[str, float]) -> float:
        """Select the epoch by adversarial R@1."""
        return scores["adversarial"]

    def reach(self, progress: float) -> tuple[float, float]:
        """Return the radius of the ball and the step size, in pixel units, at this progress (0 to 1)."""
        grown = min(1.0, progress / self.ramp) if self.ramp else 1.0
        return grown * self.eps, grown * self.step_size

    def perturb(
        self, images: Tensor, objective: Objective, generator: torch.Generator, progress: float, batch: str = ""
    ) -> Tensor:
        """Return images (B, 3, H, W) perturbed to raise the objective.

        Call it with the model in evaluation mode (:func:`dml.models.embedder.evaluating`), as an attacker would see it.

        Args:
            images: clean, in [0, 1].
            objective: images -> (B,). Only its gradient counts: the last point is kept, not the best.
            generator: of the random start.
            progress: share of the training that is done.
            batch: name of the batch, where a defence perturbs several in a step.
        """
        radius, step = self.reach(progress)
        given = {"steps": self.steps, "step_size": step, "best": False, "generator": generator}
        if self.noise != LAST:
            return pgd(images, objective, Linf(radius) if self.noise is None else Noise(radius, self.noise), **given)
        before = self.carried.get(batch, images.new_empty(0, *images.shape[1:]))
        perturbed = pgd(images, objective, Last(radius, before), **given)
        self.carried[batch] = perturbed - images
        return perturbed

    def get_extra_state(self) -> dict[str, Any]:
        """Return the perturbations of the step before; Module's ``state_dict`` holds them, whatever their number."""
        return {"carried": dict(self.carried)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        self.carried = state["carried"]
