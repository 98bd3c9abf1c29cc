"""A fine soft histogram of colours."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Shades(nn.Module):
    """How much of an image is near each of levels**3 colours, as in :class:`dml.models.palette.Palette`, but finer.

    A Gaussian on a grid of colours is the product of one for each channel, so the shares of a pixel are products of
    three short softmaxes, and more levels cost little.

    Args:
        levels: of each channel.
    """

    pooled = 2  # side of the pixel blocks that are averaged first: a quarter of the time, for nearly the same accuracy
    floor = 1e-4  # share that is added to each; it bounds the gradient of the root where a colour is absent
    at_once = 4  # images whose products fit the processor's cache

    def __init__(self, levels: int = 12) -> None:
        super().__init__()
        self.width = levels**3
        level = torch.linspace(-1, 1, levels)  # pixels come normalised to [-1, 1]
        sharpness = 2 / (level[1] - level[0]) ** 2  # of a Gaussian of half the spacing
        # The exponent of a Gaussian, less what all levels share, is linear in the pixel.
        self.register_buffer("weight", 2 * sharpness * level)
        self.register_buffer("bias", -sharpness * level.square())

    def shares(self, images: Tensor) -> Tensor:
        """Shares (B, levels**3) of normalised images (B, 3, H, W), non-negative and summing to 1."""
        pixels = F.avg_pool2d(images, self.pooled).flatten(2)
        return torch.cat([self._shares(some) for some in pixels.split(self.at_once)])

    def _shares(self, pixels: Tensor) -> Tensor:
        near = (pixels[..., None] * self.weight + self.bias).softmax(3)  # (B, 3, pixels, levels)
        red, green, blue = near.unbind(1)
        pairs = (red[..., :, None] * green[..., None, :]).flatten(2)
        return (pairs.transpose(1, 2) @ blue).flatten(1) / pairs.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> roots of the shares (B, levels**3), as Bhattacharyya's coefficient compares them."""
        return (self.shares(images) + self.floor).sqrt()
