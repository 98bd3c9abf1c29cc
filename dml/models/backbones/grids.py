"""Grids: Grid4 and Grid13 side by side."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dml.models.backbones.base import WORDS, Backbone, Normalisation
from dml.models.backbones.grid4 import Grid4
from dml.models.backbones.grid13 import Grid13
from dml.models.weights import load_backbone


class Grids(Backbone):
    """The features of :class:`Grid4` and those of :class:`Grid13`, each scaled to unit length (B, 2048).

    Two networks that were trained on different things fail on different perturbations, and an attacker has to move
    both. ``pretrained/grids.safetensors`` holds robust starts of both, one trained on labels and one on what a teacher
    sees.
    """

    width = Grid4.width + Grid13.width
    smallest = Grid4.smallest
    starts = ("random", "file")

    def __init__(self, start: str = "random") -> None:
        super().__init__()
        self.grid4, self.grid13 = Grid4(), Grid13()
        if start not in WORDS:
            # The file holds the backbone alone: no layer of it is called head.
            load_backbone(self, Path(start), "grids", without="head.")

    @classmethod
    def normalisation(cls, start: str) -> Normalisation:
        """That of both."""
        return Grid4.normalisation(start)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, width) of normalised images (B, 3, H, W)."""
        return torch.cat([F.normalize(network(images), dim=1) for network in (self.grid4, self.grid13)], 1)
