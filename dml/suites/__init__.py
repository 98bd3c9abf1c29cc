"""Suites: how a model is evaluated, by the word that params.yaml uses for them. A new one is one file and one line."""

from dml.suites.auto import Auto
from dml.suites.base import Evaluation, Suite
from dml.suites.certified import Certified
from dml.suites.paper import Paper
from dml.suites.poisoning import Poisoning
from dml.suites.ranking import Ranking

SUITES: dict[str, type] = {
    "auto": Auto,
    "certified": Certified,
    "paper": Paper,
    "poisoning": Poisoning,
    "ranking": Ranking,
}

__all__ = ["SUITES", "Auto", "Certified", "Evaluation", "Paper", "Poisoning", "Ranking", "Suite"]
