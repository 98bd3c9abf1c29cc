"""What an attack on queries is: a few runs of an optimiser, spent in turn on the queries that still survive."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dml.attacks.balls import Ball
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search

Run = Callable[[Tensor, Queries, Ball, torch.Generator], Tensor]
"""Natural images (B, 3, H, W), their queries, a ball and a generator -> perturbed images in the ball and in [0, 1]."""


class Attack(ABC):
    """A named attack with its settings; subclasses are frozen dataclasses whose fields are those settings.

    Attributes:
        lowers: the score that it lowers. An attack that is evaluated alone keeps the images with the lowest such
            score, and attacks the queries that have something left of it.
    """

    lowers: ClassVar[Literal["r1", "map_r"]] = "r1"

    @abstractmethod
    def runs(self, search: Search) -> list[Run]:
        """Return the runs in order, for one model and gallery. Each is spent on what the earlier ones left."""

    def doubled(self) -> "Attack | None":
        """Return the same attack with twice the steps; None if it has no steps to double."""
        return None
