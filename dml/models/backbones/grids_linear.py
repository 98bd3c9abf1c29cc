"""Grids beside a linear metric of pooled pixels and a fine soft histogram of colours."""

import torch

from dml.models.backbones.grid4_linear import Grid4Linear
from dml.models.backbones.grid13 import Grid13
from dml.models.backbones.grids import Grids
from dml.models.shades import Shades


class GridsLinear(Grid4Linear):
    """:class:`Grid4Linear` with the features of :class:`Grids` in the place of those of Grid4, and finer colours.

    The features are (B, 2816), and (B, 4544) with the histogram, one of :class:`dml.models.shades.Shades`.

    Args:
        start: of Grids.
        weight, colours: see :class:`Grid4Linear`.

    Raises:
        ValueError: a weight is negative.
    """

    def __init__(self, start: str = "random", weight: float = 1.0, colours: float = 0.0) -> None:
        super().__init__("random", weight)
        self.colours = colours
        self.grid = Grids(start)
        self.width += Grid13.width
        if colours:
            self.palette = Shades()
            self.width += self.palette.width
            self.register_buffer("grey", torch.zeros(self.palette.width))
            self.register_buffer("scale", torch.ones(()))
