"""What every backbone states about itself: its output, the images it takes, and the weights it can start from."""

from typing import ClassVar

from torch import Tensor, nn

from dml.data.base import Split

WORDS = ("random", "imagenet")  # starts that are no file

Normalisation = tuple[list[float], list[float]]
"""Mean and standard deviation of each channel."""


class Backbone(nn.Module):
    """Normalised images (B, 3, H, W) -> features (B, width).

    A subclass takes the start in its constructor, ``__init__(self, start="random")``: ``random``, ``imagenet``, or the
    path of a file of weights, and may take options after it. It draws initial weights from torch's global generator.

    Attributes:
        width: number of features.
        smallest: least side of an image that it accepts, pixels.
        starts: where its weights can come from, out of ``random``, ``imagenet`` and ``file``.
    """

    width: ClassVar[int]
    smallest: ClassVar[int]
    starts: ClassVar[tuple[str, ...]] = ("random",)

    @classmethod
    def normalisation(cls, start: str) -> Normalisation | None:
        """Mean and standard deviation to normalise images by; None for those of the training images."""
        return None

    def begin(self, split: Split, seed: int) -> None:
        """Fit to the training images, once before training, whatever is not trained with the rest; here nothing."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> features (B, width)."""
        raise NotImplementedError


def check_start(name: str, backbone: type[Backbone], start: str) -> None:
    """Raises ValueError if a backbone cannot start from these weights.

    Args:
        name: of the backbone in params.yaml, for the message.
        backbone: the class.
        start: ``random``, ``imagenet`` or the path of a file.
    """
    if (start if start in WORDS else "file") not in backbone.starts:
        choices = " or ".join("a file" if word == "file" else word for word in backbone.starts)
        raise ValueError(f"weights is {start!r}; {name} starts from {choices}")
