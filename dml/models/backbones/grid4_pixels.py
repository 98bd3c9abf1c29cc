"""Grid4 beside the pixels of the image at 8 x 8."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dml.models.backbones.base import Backbone, Normalisation
from dml.models.backbones.grid4 import Grid4


class Grid4Pixels(Backbone):
    """:class:`Grid4` and the image averaged in 8 x 8 boxes, concatenated (B, 1216).

    The distance of averaged pixels is hard to attack, and tells little; that of learnt features is the other way
    round. Their sum keeps more queries than either alone. ``scale`` weighs the pixels, in [0, 1] before it. It was
    chosen on held-out training classes, such that a neighbour is about as far in pixels as in features.

    The head maps both parts at random at first. A random projection keeps distances the better the longer the embedding
    is (Johnson and Lindenstrauss 1984), so give it a dimension of 1,024 or more and do not whiten.
    """

    side = 8
    scale = 5.0
    width = Grid4.width + 3 * side**2
    smallest = Grid4.smallest
    starts = Grid4.starts

    def __init__(self, start: str = "random") -> None:
        super().__init__()
        self.grid: nn.Module = Grid4(start)

    @classmethod
    def normalisation(cls, start: str) -> Normalisation:
        """That of Grid4."""
        return Grid4.normalisation(start)

    def forward(self, images: Tensor) -> Tensor:
        std = self.normalisation("random")[1][0]
        pixels = F.adaptive_avg_pool2d(images, self.side).flatten(1) * (std * self.scale)
        return torch.cat([self.grid(images), pixels], 1)
