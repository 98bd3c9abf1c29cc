"""Ways to train, by the word that params.yaml uses for them. A new one is one file and one line here."""

from dml.defenses.base import Defense
from dml.defenses.robust import Robust
from dml.defenses.single_step import SingleStep
from dml.defenses.standard import Standard

DEFENSES: dict[str, type] = {"standard": Standard, "robust": Robust, "single_step": SingleStep}

__all__ = ["DEFENSES", "Defense", "Robust", "SingleStep", "Standard"]
