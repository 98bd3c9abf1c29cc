"""Metric losses, by the word that params.yaml uses for them. A new one is one file and one line here."""

from dml.losses.base import Loss, TupleLoss, distance
from dml.losses.contrastive import Contrastive
from dml.losses.triplet import Triplet

LOSSES: dict[str, type] = {"contrastive": Contrastive, "triplet": Triplet}

__all__ = ["LOSSES", "Contrastive", "Loss", "Triplet", "TupleLoss", "distance"]
