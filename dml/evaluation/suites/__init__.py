"""Suites: how a model is evaluated. A new kind is one file and one line here; most need only a list of attacks."""

SUITES: dict[str, str] = {
    "attacks": "dml.evaluation.suites.attacks:AttackSuite",
    "ranking": "dml.evaluation.suites.ranking:Ranking",
    "poisoning": "dml.evaluation.suites.poisoning:Poisoning",
    "certified": "dml.evaluation.suites.certified:Certified",
}
