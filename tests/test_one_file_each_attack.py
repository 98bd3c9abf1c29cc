"""A new attack is one file and one name: a suite uses it like any other, and gates double it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dml.attacks import ATTACKS
from dml.config.build import evaluation
from dml.config.load import load
from dml.config.schema import ParamsError
from dml.data.base import Split
from dml.evaluation import gates
from dml.models.embedder import build
from dml.retrieval.index import Search

SOURCE = '''
"""Moves every pixel towards grey."""

from dataclasses import dataclass, replace

from dml.attacks.base import Attack


@dataclass(frozen=True)
class Greying(Attack):
    steps: int = 1

    def runs(self, search):
        def run(images, queries, ball, generator):
            perturbed = images
            for _ in range(self.steps):
                perturbed = ball.project(ball.step(perturbed, 0.5 - perturbed, ball.eps / self.steps), images)
            return perturbed

        return [run]

    def doubled(self):
        return replace(self, steps=2 * self.steps)
'''


@pytest.fixture
def greying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "toy_attacks").mkdir()
    (tmp_path / "toy_attacks" / "greying.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ATTACKS, "greying", "toy_attacks.greying:Greying")
    yield "greying"
    for name in ("toy_attacks", "toy_attacks.greying"):
        sys.modules.pop(name, None)


def named(attacks: dict[str, Any]) -> dict[str, Any]:
    """Changes of params.yaml that name attacks in a suite."""
    return {"suites.grey": {"kind": "attacks", "queries": 12, "eps": [0.01, 0.5], "alone": True, "attacks": attacks}}


def test_a_new_attack_is_used_by_its_name(greying: str, toy_split: Split) -> None:
    search = Search.over(build("conv4", 8, seed=0, statistics=toy_split.statistics()), toy_split)
    params = load(named({greying: {}, "slow": {"attack": greying, "steps": 4}}))
    suite = evaluation.suite(params.suite("grey"))
    table = suite.evaluate(search, np.arange(12), seed=0, report=lambda line: None).outcomes
    left = table.pivot_table(index="attack", columns="eps", values="r1")
    assert set(left.index) == {"none", greying, "slow", "worst"}
    assert left.loc["worst", 0.5] == 0, "all images are grey"
    assert suite.doubled().named["slow"].steps == 8
    checked = gates.check(search, suite, table, seed=0, surrogates={}, report=lambda line: None).set_index("gate")
    assert checked.loc["R@1 left at eps 0.5", "passed"]
    assert "broken by twice the steps" in checked.index


def test_its_settings_are_checked(greying: str) -> None:
    with pytest.raises(
        ParamsError, match=r"params\.yaml: suites\.grey.*greying key 'step' is unknown; did you mean 'steps'"
    ):
        load(named({greying: {"step": 2}}))
    with pytest.raises(ParamsError, match="'greyin' is unknown; did you mean 'greying'"):
        load(named({"greyin": {}}))
