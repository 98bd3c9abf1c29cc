"""Grid4 beside a linear metric of pooled pixels and a soft histogram of colours."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dml.common.checks import at_least
from dml.common.randomness import torch_generator
from dml.data.base import Split
from dml.data.sampling import evenly
from dml.data.transforms import to_float
from dml.models.backbones.base import Backbone, Normalisation
from dml.models.backbones.grid4 import Grid4
from dml.models.linear_metric import EPS, STEPS, points_of, pooled, product, trained
from dml.models.palette import Palette

IMAGES = 2_000  # at most, evenly spaced, that the scale of the parts is taken from


class Grid4Linear(Backbone):
    """:class:`Grid4`, scaled to unit length, a robust linear metric of the pixels at 16 x 16, and a soft histogram.

    A linear metric is hard to attack, and tells little; learnt features are the other way round. Together they keep
    more queries than either alone, since an attacker has to move both. The colours of a :class:`Palette`
    rank many images of a class first. :meth:`begin` fits the metric to the training images and scales both; they then
    stay as they are. The features are an embedding as they are: a model of this backbone needs no head. They are
    (B, 1792), and (B, 2008) with the histogram.

    Args:
        start: of Grid4.
        weight: how many times as far a neighbour is at first in the metric as in the features. At 0 the metric is left
            out; choose on held-out training classes.
        colours: the same of the histogram.

    Raises:
        ValueError: a weight is negative.
    """

    side = 16
    width = Grid4.width + 3 * side**2
    smallest = Grid4.smallest
    starts = Grid4.starts

    def __init__(self, start: str = "random", weight: float = 1.0, colours: float = 0.0) -> None:
        super().__init__()
        at_least("weight", weight, 0)
        at_least("colours", colours, 0)
        self.weight, self.colours = weight, colours
        self.grid = Grid4(start)
        size = 3 * self.side**2
        self.register_buffer("matrix", torch.eye(size))
        self.register_buffer("centre", torch.zeros(size))
        if colours:
            self.width += Palette.width
            self.palette = Palette()
            self.register_buffer("grey", torch.zeros(Palette.width))  # the mean histogram of the training images
            self.register_buffer("scale", torch.ones(()))  # of the histogram, as `colours` says

    @classmethod
    def normalisation(cls, start: str) -> Normalisation:
        """That of Grid4."""
        return Grid4.normalisation(start)

    @torch.no_grad()
    def begin(self, split: Split, seed: int) -> None:
        """See :meth:`Backbone.begin`.

        Raises:
            ValueError: no two images can be a pair.
        """
        points = points_of(split, self.side)
        with torch.enable_grad():
            generator = torch_generator(seed, "linear metric", self.side)
            (factors,) = trained(points, self.side, EPS, generator, every=STEPS)
        matrix, centre = product(factors).float(), points.pixels.mean(0)
        rows = torch.from_numpy(evenly(IMAGES, len(split)))
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in self.normalisation("random"))
        was = self.training
        self.eval()
        images = [(to_float(split.images[part]) - mean) / std for part in rows.split(256)]
        apart = _nearest(torch.cat([F.normalize(self.grid(part), dim=1) for part in images]))
        self.matrix.copy_(self.weight * apart / _nearest((points.pixels[rows] - centre) @ matrix.T) * matrix)
        self.centre.copy_(centre)
        if self.colours:
            roots = torch.cat([self._shades(part) for part in images])
            self.scale.copy_(self.colours * apart / _nearest(roots))
            self.grey.copy_(roots.mean(0))
        self.train(was)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, width) of normalised images (B, 3, H, W)."""
        mean, std = self.normalisation("random")
        pixels = pooled(images, self.side).float() + 0.5  # of normalised images
        pixels = pixels * std[0] + mean[0] - 0.5
        parts = [F.normalize(self.grid(images), dim=1), (pixels - self.centre) @ self.matrix.T]
        if self.colours:
            parts.append(self.scale * (self._shades(images) - self.grey))
        return torch.cat(parts, 1)

    def _shades(self, images: Tensor) -> Tensor:
        """Roots of the shares of colours; a palette takes pixels in [-1, 1], Grid4 in [-2, 2]."""
        with torch.autocast(images.device.type, enabled=False):  # shares differ by less than bfloat16 resolves
            return self.palette(images / 2)


def _nearest(points: Tensor) -> Tensor:
    """Return the median distance of points (N, D) to the nearest other."""
    apart = torch.cdist(points, points)
    return apart.fill_diagonal_(torch.inf).min(1).values.median()
