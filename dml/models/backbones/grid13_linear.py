"""Grid13 beside a linear metric of pooled pixels and a soft histogram of colours."""

from dml.models.backbones.grid4_linear import Grid4Linear
from dml.models.backbones.grid13 import Grid13


class Grid13Linear(Grid4Linear):
    """:class:`Grid4Linear` with :class:`Grid13` in the place of Grid4; both have 1024 features.

    Args:
        start: of Grid13.
        weight, colours: see :class:`Grid4Linear`.

    Raises:
        ValueError: a weight is negative.
    """

    def __init__(self, start: str = "random", weight: float = 1.0, colours: float = 0.0) -> None:
        super().__init__("random", weight, colours)
        self.grid = Grid13(start)
