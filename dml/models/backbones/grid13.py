"""Grid13: thirteen convolutions in residual blocks; features keep the quarter of the image that they come from."""

from pathlib import Path

from torch import Tensor, nn

from dml.models.backbones.base import WORDS, Backbone, Normalisation
from dml.models.weights import load_backbone


class Grid13(Backbone):
    """One 3x3 convolution and three stages of two residual blocks (64-128-256 channels), halved by average pooling.

    A block is BatchNorm, SiLU and a 3x3 convolution, twice (He et al. 2016, "Identity Mappings"). The last feature map
    is averaged in 2 x 2 cells, which are concatenated (B, 1024), as in :class:`dml.models.backbones.grid4.Grid4`, of
    which it has three times the weights. ``make pretrain`` makes a robust start for it.
    """

    width = 1024
    smallest = 16  # three poolings leave 2 x 2 values
    starts = ("random", "file")

    def __init__(self, start: str = "random") -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1, bias=False)]
        channels = 64
        for width in (64, 128, 256):
            layers += [nn.AvgPool2d(2), Block(channels, width), Block(width, width)]
            channels = width
        layers += [nn.BatchNorm2d(channels), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        if start not in WORDS:
            # The file holds the backbone alone: no layer of it is called head.
            load_backbone(self, Path(start), "grid13", without="head.")

    @classmethod
    def normalisation(cls, start: str) -> Normalisation:
        """The same from any start, so that weights fit every dataset."""
        return [0.5] * 3, [0.25] * 3

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, width) of normalised images (B, 3, H, W)."""
        return self.layers(images)


class Block(nn.Module):
    """Two convolutions beside a shortcut, which is a 1x1 convolution where the channels change."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.begin = nn.Sequential(nn.BatchNorm2d(channels), nn.SiLU())
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        )
        self.shortcut = None if channels == width else nn.Conv2d(channels, width, 1, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        """Feature maps (B, channels, H, W) -> (B, width, H, W)."""
        begun = self.begin(values)
        return (values if self.shortcut is None else self.shortcut(begun)) + self.convolutions(begun)
