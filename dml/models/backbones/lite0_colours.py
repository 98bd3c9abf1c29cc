"""The inner stages of an EfficientNet-Lite0 and a soft histogram of colours, for images of 32 to 64 pixels."""

import torch
from torch import Tensor

from dml.models.backbones.base import Backbone, Normalisation
from dml.models.backbones.lite0_stages import Lite0Stages
from dml.models.backbones.palette import Palette


class Lite0Colours(Backbone):
    """:class:`Lite0Stages` and :class:`Palette` of the same images, concatenated (B, 472)."""

    width = Lite0Stages.width + Palette.width
    smallest = Lite0Stages.smallest
    starts = Lite0Stages.starts

    def __init__(self, start: str = "random") -> None:
        super().__init__()
        self.stages, self.palette = Lite0Stages(start), Palette()

    @classmethod
    def normalisation(cls, start: str) -> Normalisation:
        """Pixels in [-1, 1], from any start: the grid of colours spans that range."""
        return Lite0Stages.normalisation(start)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.stages(images), self.palette(images)], 1)
