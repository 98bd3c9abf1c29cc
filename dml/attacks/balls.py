"""The sets that a perturbed image must stay in: within eps of the original and within [0, 1]."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from dml.common.randomness import normal, uniform


class Ball(Protocol):
    """How an attack starts, moves and stays inside.

    Images are (B, 3, H, W); eps is in pixel units. Radii and step sizes are one number, or one per image (B,).
    """

    norm: ClassVar[str]
    eps: float | Tensor

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return a random point of each image's ball, (B, 3, H, W)."""
        ...

    def step(self, perturbed: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Return points (B, 3, H, W) a step of steepest ascent away, not yet projected, given the gradient there."""
        ...

    def projection(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what moves points back into the ball about ``images`` and into [0, 1], for all steps of an attack."""
        ...

    def project(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """Return points (B, 3, H, W) moved back into the ball about ``images`` and into [0, 1]."""
        return self.projection(images)(perturbed)

    def length(self, perturbation: Tensor) -> Tensor:
        """(B,) lengths of perturbations (B, 3, H, W) in the norm of the ball."""
        ...


def radius_text(eps: float) -> str:
    """Return a radius as people write it: 8/255 or 0.01."""
    return f"{eps * 255:.0f}/255" if abs(eps * 255 - round(eps * 255)) < 1e-6 else f"{eps:g}"


def spread(values: float | Tensor, images: Tensor | None = None) -> Tensor:
    """Return one number, or one per image (B,), as a tensor that broadcasts over images.

    Args:
        values: to spread.
        images: whose dtype and device the result takes, if given.
    """
    if images is not None:
        # A number is written on the device: copying one there would wait for a GPU, in every step of an attack.
        values = values.to(images) if isinstance(values, Tensor) else images.new_full((), values)
    return values.view(-1, 1, 1, 1) if values.ndim else values


@dataclass(frozen=True)
class Linf(Ball):
    """Every pixel value may change by at most eps.

    Attributes:
        eps: one radius, or one per image (B,).

    Raises:
        ValueError: eps is negative.
    """

    norm: ClassVar[str] = "linf"
    eps: float | Tensor

    def __post_init__(self) -> None:
        _checked(self.eps)

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return a uniform draw from the ball."""
        noise = uniform(images.shape, images, generator) * 2 - 1
        return self.project(images + noise * spread(self.eps, images), images)

    def step(self, perturbed: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Move by ``size`` along the sign of the gradient: steepest ascent in this norm."""
        return torch.addcmul(perturbed, spread(size, perturbed), gradient.sign())

    def projection(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what moves points to the nearest one of the ball and of [0, 1]."""
        # Rounding of images + eps may exceed eps by half a unit in the last place of 1; the radius gives it up.
        radius = (spread(self.eps, images) - torch.finfo(images.dtype).eps).clamp_min(0)
        low, high = (images - radius).clamp_(0, 1), (images + radius).clamp_(0, 1)
        return lambda perturbed: perturbed.clamp(low, high)

    def length(self, perturbation: Tensor) -> Tensor:
        """(B,) largest change of a pixel value in perturbations (B, 3, H, W)."""
        return perturbation.flatten(1).abs().amax(1)


@dataclass(frozen=True)
class L2(Ball):
    """The Euclidean length of an image's whole perturbation is at most eps.

    Attributes:
        eps: one radius, or one per image (B,).

    Raises:
        ValueError: eps is negative.
    """

    norm: ClassVar[str] = "l2"
    eps: float | Tensor

    def __post_init__(self) -> None:
        _checked(self.eps)

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return a uniform draw from the ball, cut to [0, 1]."""
        direction = normal(images.shape, images, generator)
        length = uniform(images.shape[:1], images, generator) ** (1 / images[0].numel())
        offset = direction / _norm(direction) * length.view(-1, 1, 1, 1) * spread(self.eps, images)
        return self.project(images + offset, images)

    def step(self, perturbed: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Move by ``size`` along the gradient's own direction: steepest ascent in this norm."""
        return perturbed + spread(size, perturbed) * gradient / _norm(gradient)

    def projection(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what scales points back onto the ball, then cuts them to [0, 1], which only brings them nearer."""
        # As for Linf, the radius gives up what rounding could add: a few units in the last place of each pixel.
        slack = torch.finfo(images.dtype).eps * images[0].numel() ** 0.5
        radius = (spread(self.eps, images) - slack).clamp_min(0)

        def inside(perturbed: Tensor) -> Tensor:
            offset = perturbed - images
            return (images + offset * (radius / _norm(offset)).clamp(max=1)).clamp(0, 1)

        return inside

    def length(self, perturbation: Tensor) -> Tensor:
        """(B,) Euclidean lengths of perturbations (B, 3, H, W)."""
        return perturbation.flatten(1).norm(dim=1)


def _checked(eps: float | Tensor) -> None:
    if bool((torch.as_tensor(eps) < 0).any()):
        raise ValueError(f"eps is {eps}; it must be 0 or more")


def _norm(batch: Tensor) -> Tensor:
    """Euclidean length of each image, (B, 1, 1, 1), never zero."""
    return batch.flatten(1).norm(dim=1).clamp_min(torch.finfo(batch.dtype).tiny).view(-1, 1, 1, 1)
