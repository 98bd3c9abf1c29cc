"""The sets that a perturbed picture must stay in: within eps of the original and within [0, 1]."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Ball(Protocol):
    """How an attack starts, moves and stays inside; pictures are (B, 3, H, W), eps is in pixel units.

    Radii and step sizes are one number, or one a picture (B,).
    """

    norm: ClassVar[str]
    eps: float | Tensor

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor: ...

    def step(self, perturbed: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor: ...

    def project(self, perturbed: Tensor, images: Tensor) -> Tensor: ...


def radius_text(eps: float) -> str:
    """A radius as people write it: 8/255 or 0.01."""
    return f"{eps * 255:.0f}/255" if abs(eps * 255 - round(eps * 255)) < 1e-6 else f"{eps:g}"


def _checked(eps: float | Tensor) -> None:
    if bool((torch.as_tensor(eps) < 0).any()):
        raise ValueError(f"eps is {eps}; a radius is 0 or more")


def spread(values: float | Tensor, images: Tensor | None = None) -> Tensor:
    """One number, or one a picture (B,), as a tensor that broadcasts over pictures, of the kind of ``images``."""
    if images is not None:
        values = torch.as_tensor(values, dtype=images.dtype, device=images.device)
    return values.view(-1, 1, 1, 1) if values.ndim else values


@dataclass(frozen=True)
class Linf:
    """Every pixel value may change by at most eps.

    Attributes:
        eps: one radius, or one a picture (B,).

    Raises:
        ValueError: eps is negative.
    """

    norm: ClassVar[str] = "linf"
    eps: float | Tensor

    def __post_init__(self) -> None:
        _checked(self.eps)

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A uniform draw from the ball."""
        noise = torch.rand(images.shape, generator=generator).to(images) * 2 - 1
        return self.project(images + noise * spread(self.eps, images), images)

    def step(self, perturbed: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Steepest ascent in this norm: ``size`` along the sign of the gradient."""
        return perturbed + spread(size, perturbed) * gradient.sign()

    def project(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """The nearest point of the ball and of [0, 1]."""
        # Rounding of images + eps may exceed eps by half a unit in the last place of 1; the radius gives it up.
        radius = (spread(self.eps, images) - torch.finfo(images.dtype).eps).clamp_min(0)
        return perturbed.clamp(images - radius, images + radius).clamp_(0, 1)


@dataclass(frozen=True)
class L2:
    """The Euclidean length of a picture's whole perturbation is at most eps.

    Attributes:
        eps: one radius, or one a picture (B,).

    Raises:
        ValueError: eps is negative.
    """

    norm: ClassVar[str] = "l2"
    eps: float | Tensor

    def __post_init__(self) -> None:
        _checked(self.eps)

    def start(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A uniform draw from the ball (before [0, 1] cuts it)."""
        direction = torch.randn(images.shape, generator=generator).to(images)
        length = torch.rand(len(images), generator=generator).to(images) ** (1 / images[0].numel())
        offset = direction / _norm(direction) * length.view(-1, 1, 1, 1) * spread(self.eps, images)
        return self.project(images + offset, images)

    def step(self, perturbed: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Steepest ascent in this norm: ``size`` along the gradient's own direction."""
        return perturbed + spread(size, perturbed) * gradient / _norm(gradient)

    def project(self, perturbed: Tensor, images: Tensor) -> Tensor:
        """Scaled back onto the ball, then cut to [0, 1], which only shortens the perturbation."""
        offset = perturbed - images
        # As for Linf, the radius gives up what rounding could add: a few units in the last place of each pixel.
        slack = torch.finfo(images.dtype).eps * images[0].numel() ** 0.5
        radius = (spread(self.eps, images) - slack).clamp_min(0)
        return (images + offset * (radius / _norm(offset)).clamp(max=1)).clamp(0, 1)


def _norm(batch: Tensor) -> Tensor:
    """Euclidean length of each picture, (B, 1, 1, 1), never zero."""
    return batch.flatten(1).norm(dim=1).clamp_min(torch.finfo(batch.dtype).tiny).view(-1, 1, 1, 1)
