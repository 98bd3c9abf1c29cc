"""A soft histogram of colours."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Palette(nn.Module):
    """The share of an image near each of 216 colours (B, 216), after the learnable histograms of Wang et al. (2016).

    The colours start as a 6 x 6 x 6 grid, and training moves them. A Gaussian of half their spacing divides each pixel
    among them, so that a small change of a pixel moves the shares little. Colours identify products and flowers;
    networks trained on the classes of ImageNet use them little.
    """

    levels = 6
    width = levels**3
    pooled = 3  # side of the pixel blocks that are averaged first: a quarter of the time, for the same accuracy
    at_once = 16  # images whose shares fit the processor's cache: half the time of a hundred

    def __init__(self) -> None:
        super().__init__()
        level = torch.linspace(-1, 1, self.levels)  # pixels come normalised to [-1, 1]
        colours = torch.cartesian_prod(level, level, level)
        sharpness = 2 / (level[1] - level[0]) ** 2
        # The exponent of a Gaussian, less what all colours share, is linear in the pixel.
        self.nearness = nn.Linear(3, len(colours))
        with torch.no_grad():
            self.nearness.weight.copy_(2 * sharpness * colours)
            self.nearness.bias.copy_(-sharpness * colours.square().sum(1))
        self.norm = nn.LayerNorm(len(colours))

    def shares(self, images: Tensor) -> Tensor:
        """Shares (B, 216) of normalised images (B, 3, H, W), non-negative and summing to 1."""
        # Channels are last in memory, and the softmax runs over adjacent values.
        pixels = F.avg_pool2d(images, self.pooled).permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat([self.nearness(some).softmax(2).mean(1) for some in pixels.split(self.at_once)])

    def roots(self, images: Tensor) -> Tensor:
        """Square roots (B, 216) of the shares, as in Bhattacharyya's coefficient of two histograms."""
        return (self.shares(images) + 1e-3).sqrt()  # bounds the gradient where a colour is absent

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.roots(images))
