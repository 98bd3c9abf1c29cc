"""Suites: how a model is evaluated, by the word that params.yaml uses for them. A new one is one file and one line."""

from dml.evaluation.suites.auto import Auto
from dml.evaluation.suites.base import Evaluation, Suite
from dml.evaluation.suites.certified import Certified
from dml.evaluation.suites.paper import Paper
from dml.evaluation.suites.poisoning import Poisoning
from dml.evaluation.suites.ranking import Ranking

SUITES: dict[str, type] = {
    "auto": Auto,
    "certified": Certified,
    "paper": Paper,
    "poisoning": Poisoning,
    "ranking": Ranking,
}

__all__ = ["SUITES", "Auto", "Certified", "Evaluation", "Paper", "Poisoning", "Ranking", "Suite"]
