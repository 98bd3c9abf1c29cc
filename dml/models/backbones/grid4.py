"""Grid4: four convolutions whose features keep the quarter of the image that they come from."""

from pathlib import Path

from torch import Tensor, nn

from dml.models.backbones.base import WORDS, Backbone, Normalisation
from dml.models.weights import load_backbone


class Grid4(Backbone):
    """Four 3x3 convolutions (64-128-256-256 channels), each followed by average pooling, BatchNorm and SiLU.

    The last feature map is averaged in 2 x 2 cells, which are concatenated (B, 1024). Pooling by averages passes a
    perturbation of alternating sign less than pooling by maxima does, and smooth activations help adversarial training
    (Xie et al. 2020). A file of weights, such as ``pretrained/grid4.safetensors``, gives it a robust start.
    """

    width = 1024
    smallest = 32  # four poolings leave 2 x 2 values
    starts = ("random", "file")

    def __init__(self, start: str = "random") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (64, 128, 256, 256):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.AvgPool2d(2)]
            layers += [nn.BatchNorm2d(width), nn.SiLU()]
            channels = width
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        if start not in WORDS:
            # The file holds the backbone alone: no layer of it is called head.
            load_backbone(self, Path(start), "grid4", without="head.")

    @classmethod
    def normalisation(cls, start: str) -> Normalisation:
        """The same from any start, so that weights fit every dataset."""
        return [0.5] * 3, [0.25] * 3

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, width) of normalised images (B, 3, H, W)."""
        return self.layers(images)
