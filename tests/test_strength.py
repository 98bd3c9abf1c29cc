"""benchmarks/strength.py: every attack spends its whole budget on what it cannot break, and no more on the rest."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from torch import nn

from benchmarks import strength
from dml.attacks.queries.peer import INSTALLED
from dml.common.files import ROOT
from dml.config.load import load
from dml.data.base import Split
from dml.models.embedder import build
from dml.reporting.style import caption_of

pytestmark = pytest.mark.skipif(not INSTALLED, reason="needs adversarial-library")
ATTACKS = ["suite auto", "APGD of adv-lib", "PGD with momentum"]
TABLE = ROOT / "results" / "strength.csv"


@pytest.fixture(scope="module")
def split() -> Split:
    """Fourteen classes of three images, each class a noisy colour pattern."""
    draw = np.random.default_rng(0)
    patterns = draw.integers(60, 195, (14, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2).repeat(3, axis=0)
    images = np.clip(patterns + draw.normal(0, 12, patterns.shape), 0, 255).astype(np.uint8)
    return Split(images, np.repeat(np.arange(14), 3), [str(label) for label in range(14)])


@pytest.fixture
def model(split: Split) -> nn.Module:
    return build("conv4", 8, seed=0, statistics=split.statistics()).eval()


@pytest.mark.parametrize("budget", [40, 100, 210])
def test_a_budget_is_spent_to_the_last_gradient_where_nothing_breaks(
    model: nn.Module, split: Split, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strength, "EPS", 1e-6)
    table = strength.measure(model, split, 4, budget)
    assert table["attack"].tolist() == ATTACKS
    np.testing.assert_array_equal(table["gradients"], budget)
    assert (table["forwards"] > budget).all(), "what the suite's Square tries, and the exact ranking of what was found"
    assert (table["r1"] == 1).all()


def test_what_breaks_costs_less(model: nn.Module, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strength, "EPS", 0.5)
    table = strength.measure(model, split, 4, 100).set_index("attack")
    assert (table["r1"] == 0).all()
    assert (table["r1_high"] > 0).all()
    assert table.loc["suite auto", "gradients"] <= 10, "all are broken by its short run"
    assert (table["gradients"] <= 100).all()


def test_the_verdict_names_where_the_suite_leaves_more() -> None:
    rows = [("a", 50, 0.6), ("b", 50, 0.6), ("a", 100, 0.5), ("b", 100, 0.5)]
    others = {("a", 50): 0.54, ("b", 50): 0.56, ("a", 100): 0.5, ("b", 100): 0.6}
    table = pd.DataFrame(
        [(model, budget, "suite auto", r1, 0.05) for model, budget, r1 in rows]
        + [(model, budget, "PGD with momentum", r1, 0.05) for (model, budget), r1 in others.items()],
        columns=["model", "budget", "attack", "r1", "r1_error"],
    )
    clearly, at_all = strength.verdict(table).split(". ")
    assert clearly == "Another attack leaves less than the suite by over a standard error: a at 50"
    assert at_all == "Another attack leaves less at all: a at 50, b at 50."
    clearly, at_all = strength.verdict(table.iloc[[1, 2, 3, 5, 6, 7]]).split(". ")
    assert clearly.endswith(": nowhere")
    assert at_all.endswith(": b at 50.")
    assert strength.verdict(table.iloc[[2, 3, 6, 7]]).endswith("at all: nowhere.")


def test_attacks_are_compared_at_the_gradients_that_they_spent() -> None:
    rows = [("suite auto", 10.0, 0.6), ("suite auto", 40.0, 0.5)]
    rows += [("PGD with momentum", 20.0, 0.6), ("PGD with momentum", 30.0, 0.55), ("PGD with momentum", 5.0, 0.7)]
    table = pd.DataFrame(rows, columns=["attack", "gradients", "r1"]).assign(model="a")
    told = "With as many gradients spent, another attack leaves less: "
    assert strength.spent(table) == f"{told}a at 30, a at 5.", "with five the suite was not measured"
    assert strength.spent(table.iloc[[0, 1, 2]]) == f"{told}nowhere."


@pytest.mark.skipif(not TABLE.exists(), reason="results/strength.csv does not exist; benchmarks/strength.py says how")
def test_the_committed_table_has_every_model_and_no_clear_loss() -> None:
    table = pd.read_csv(TABLE)
    assert list(table) == ["model", "weights", *strength.COLUMNS]
    assert set(table["model"]) == set(strength.MODELS)
    assert set(table["attack"]) == set(ATTACKS)
    assert strength.verdict(table).split(". ")[0].endswith(": nowhere"), strength.verdict(table)
    assert strength.spent(table).endswith(": nowhere."), strength.spent(table)


@pytest.mark.skipif(not TABLE.exists(), reason="results/strength.csv does not exist; benchmarks/strength.py says how")
def test_the_committed_table_is_of_the_models_that_the_records_are_of(committed: Path) -> None:
    table = pd.read_csv(TABLE).drop_duplicates("model").set_index("model")["weights"]
    found = {
        name: json.loads((committed / "glyphs" / name / "quick.json").read_text())["weights"] for name in table.index
    }
    assert table.to_dict() == found, "run benchmarks/strength.py with the models of `make repro`"


def test_its_models_are_those_of_the_pipeline() -> None:
    """The three trainings that every claim names, with each loss of the run; a defence of yours need not be there."""
    params = load()
    named = (params.figures.baseline, params.figures.paper, params.figures.peer)
    assert set(named) <= {"standard", *params.run.defenses}
    assert set(strength.MODELS) == {f"{loss}-{defense}-0" for loss in params.run.losses for defense in named}


def test_it_keeps_numbers_and_a_figure(
    model: nn.Module, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(strength, "base", SimpleNamespace(load=lambda place: SimpleNamespace(test=split)))
    monkeypatch.setattr(strength, "dml", SimpleNamespace(load=lambda place: model))
    words = ["--models", "made/up", "--queries", "4", "--budgets", "40", "60", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["strength.py", *words])
    strength.main()
    table = pd.read_csv(tmp_path / "strength.csv")
    assert table["attack"].tolist() == ATTACKS * 2
    assert table["budget"].tolist() == [40] * 3 + [60] * 3
    assert set(table["model"]) == {"up"}
    assert ((table["r1_low"] <= table["r1"]) & (table["r1"] <= table["r1_high"])).all()
    told = capsys.readouterr().out.splitlines()[-1]
    assert caption_of(tmp_path / "strength.png").endswith(told)
