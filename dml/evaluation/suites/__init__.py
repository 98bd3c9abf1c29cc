"""Suites: how a model is evaluated. A new kind is one file and one line here; most need only a list of attacks."""

SUITES: dict[str, str] = {
    "attacks": "dml.evaluation.suites.attacks:AttackSuite",
    "with_groups": "dml.evaluation.suites.with_groups:WithGroupsSuite",
    "ranking": "dml.evaluation.suites.ranking:Ranking",
    "poisoning": "dml.evaluation.suites.poisoning:Poisoning",
    "certified": "dml.evaluation.suites.certified:Certified",
}
