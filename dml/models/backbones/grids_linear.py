"""Grids beside a linear metric of pooled pixels and a soft histogram of colours."""

from dml.models.backbones.grid4_linear import Grid4Linear
from dml.models.backbones.grid13 import Grid13
from dml.models.backbones.grids import Grids


class GridsLinear(Grid4Linear):
    """:class:`Grid4Linear` with the features of :class:`Grids` in the place of those of Grid4: (B, 2816) or (B, 3032).

    Args:
        start: of Grids.
        weight, colours: see :class:`Grid4Linear`.

    Raises:
        ValueError: a weight is negative.
    """

    def __init__(self, start: str = "random", weight: float = 1.0, colours: float = 0.0) -> None:
        super().__init__("random", weight, colours)
        self.grid = Grids(start)
        self.width += Grid13.width
