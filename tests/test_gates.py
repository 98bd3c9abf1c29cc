"""Gates: models that only seem robust are caught, an honest one passes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from dml.data.base import Split
from dml.evaluation import gates
from dml.evaluation.statistics import standard_error
from dml.evaluation.suites.attacks import AttackSuite
from dml.models.embedder import Embedder, build
from dml.retrieval.index import Search

EPS = 0.06
SUITE = AttackSuite(
    queries=36,
    eps=(EPS,),
    attacks={"margin": {"steps": 20}, "targeted": {"steps": 10, "classes": 3}},
    claims=True,
    gate_tries=100,
)


class Quantised(nn.Module):
    """Rounds its input to a few levels: the gradient of rounding is zero everywhere."""

    def __init__(self, inner: Embedder) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner((images * 24).round() / 24)


class Saturated(nn.Module):
    """Passes its embedding through a steep sigmoid whose gradient underflows to exactly zero."""

    def __init__(self, inner: Embedder) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(torch.sigmoid(4000 * self.inner(images)) - 0.5, dim=1)


@pytest.fixture(scope="module")
def trained() -> tuple[Embedder, Split]:
    """An embedding of noisy colour patterns, nearer to each other than those of the shared toy."""
    draw = np.random.default_rng(1)
    patterns = draw.integers(90, 165, (6, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(patterns, 6, axis=0) + draw.normal(0, 10, (36, 16, 16, 3))
    split = Split(
        np.clip(images, 0, 255).astype(np.uint8), np.repeat(np.arange(6), 6), [f"class {i}" for i in range(6)]
    )
    return build("conv4", 16, seed=0, statistics=split.statistics()).eval(), split


def silent(line: str) -> None:
    """Progress is not looked at here."""


def run(model: nn.Module, split: Split, surrogates: dict[str, Search] | None = None) -> tuple[pd.DataFrame, float]:
    search = Search.over(model, split)
    outcomes = SUITE.evaluate(search, np.roll(np.arange(36), 5), seed=0, report=silent).outcomes
    table = gates.check(search, SUITE, outcomes, seed=0, surrogates=surrogates or {}, report=silent)
    return table.set_index("gate"), outcomes[outcomes["attack"] == "worst"]["r1"].mean()


def test_an_honest_model_passes(trained: tuple[Embedder, Split]) -> None:
    table, _ = run(*trained, surrogates={"another": Search.over(build("conv4", 16, seed=3).eval(), trained[1])})
    assert table["passed"].all(), table
    assert table.loc["images changed at eps 0", "measured"] == 0
    assert "broken by images that fool another" in table.index
    assert "certified queries that the attack broke" not in table.index
    assert len(table) == 9


def test_a_model_that_quantises_its_input_is_caught(trained: tuple[Embedder, Split]) -> None:
    honest, split = trained
    table, left = run(Quantised(honest), split, {"another": Search.over(honest, split)})
    _, honest_left = run(honest, split)
    assert left > honest_left, "it looks more robust"
    assert not table.loc["queries without a gradient", "passed"]
    assert table.loc["queries without a gradient", "measured"] == 1
    assert not table.loc["broken by images that fool another", "passed"], "its answers are still fragile"


def test_a_saturated_model_is_caught(trained: tuple[Embedder, Split]) -> None:
    table, _ = run(Saturated(trained[0]), trained[1])
    assert not table["passed"].all()
    assert not table.loc["queries without a gradient", "passed"]


def outcome(attack: str, eps: float, r1: np.ndarray, disagree: np.ndarray | int = 0) -> pd.DataFrame:
    query = np.arange(len(r1))
    margin = np.where(r1 == 1, -0.1 - query / 1000, 0.1)  # of survivors, the first is nearest to breaking
    return pd.DataFrame(
        {"query": query, "attack": attack, "eps": eps, "r1": r1.astype(int), "disagree": disagree, "margin": margin}
    )


def test_other_attacks_meet_the_survivors_nearest_to_breaking() -> None:
    left = outcome("worst", EPS, np.arange(100) >= 40)
    survivors = left[left["r1"] == 1]
    shuffled = survivors.sample(frac=1, random_state=0)
    np.testing.assert_array_equal(gates.nearest(shuffled, allowed=4.9), np.arange(40, 70))
    np.testing.assert_array_equal(gates.nearest(survivors.iloc[:7], allowed=4.9), np.arange(40, 47))


def test_more_survivors_are_tried_where_a_gate_allows_more_of_them_to_break() -> None:
    """Of thirty that are tried none could break a limit of 35, as that of a suite with 5,000 queries is."""
    survivors = outcome("worst", EPS, np.ones(5000))
    allowed = standard_error(2500, 5000) * 5000
    assert allowed > gates.NEAREST
    assert len(gates.nearest(survivors, allowed)) > 1.4 * allowed
    for count in (300, 1000, 1600):  # the suites of params.yaml
        assert len(gates.nearest(survivors, standard_error(count // 2, count) * count)) == gates.NEAREST


def test_the_gates_look_at_every_radius_and_at_survivors(trained: tuple[Embedder, Split], tmp_path: Path) -> None:
    """Queries that are marked as survivors, though nothing was run on them, break under anything: the share of all."""
    search = Search.over(*trained)
    survives = np.arange(36) >= 27
    outcomes = pd.concat([outcome("none", 0.0, np.ones(36)), *(outcome("worst", e, survives) for e in (EPS, 0.5))])
    settings = {"seed": 0, "surrogates": {}, "folder": tmp_path, "report": silent}
    weak = replace(SUITE, gate_tries=1)
    table = gates.check(search, weak, outcomes, **settings)
    found = table.set_index(["gate", "eps"])
    twice = found.loc["broken by twice the steps"]
    assert list(twice.index) == [EPS, 0.5]
    assert twice.loc[0.5, "measured"] == pytest.approx(9 / 36), "each of the nine that survive breaks"
    assert twice.loc[0.5, "limit"] == pytest.approx(standard_error(9, 36))
    assert not twice.loc[0.5, "passed"]

    def unexpected(*arguments: object) -> int:
        raise AssertionError("measured twice")

    with pytest.MonkeyPatch.context() as patch:  # a killed check continues
        patch.setattr(gates, "_broken", unexpected)
        pd.testing.assert_frame_equal(gates.check(search, weak, outcomes, **settings), table)
        next(file for file in tmp_path.iterdir() if "twice" in file.name).unlink()
        with pytest.raises(AssertionError, match="measured twice"):
            gates.check(search, weak, outcomes, **settings)


def test_a_query_breaks_in_a_gate_where_the_model_gives_no_number(trained: tuple[Embedder, Split]) -> None:
    """The old gate counted margins of at least 0, which no number is."""

    class Overflow(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.bound = inner, 0.0

        def forward(self, images: Tensor) -> Tensor:
            rough = images.diff(dim=3).abs().mean((1, 2, 3))[:, None] > self.bound
            return torch.where(rough, torch.nan, self.inner(images))

    model = Overflow(trained[0])
    smooth = np.full((36, 16, 16, 3), 100, np.uint8) + np.repeat(np.arange(6, dtype=np.uint8), 6)[:, None, None, None]
    search = Search.over(model, replace(trained[1], images=smooth))
    outcomes = pd.concat([outcome("none", 0.0, np.ones(36)), outcome("worst", EPS, np.ones(36))])
    table = gates.check(search, SUITE, outcomes, seed=0, surrogates={}, report=silent).set_index("gate")
    assert table.loc["broken by random noise", "measured"] == pytest.approx(gates.NEAREST / 36), "all that were tried"


def test_a_suite_that_cannot_be_doubled_has_no_such_gate(trained: tuple[Embedder, Split]) -> None:
    suite = AttackSuite(36, (EPS,), {"square": {"tries": 5}}, gate_tries=1)
    outcomes = pd.concat([outcome("none", 0.0, np.ones(36)), outcome("worst", EPS, np.zeros(36))])
    table = gates.check(Search.over(*trained), suite, outcomes, seed=0, surrogates={}, report=silent)
    assert "broken by twice the steps" not in set(table["gate"])


def test_a_query_left_out_at_a_smaller_radius_that_breaks_there_is_caught(trained: tuple[Embedder, Split]) -> None:
    """Queries marked as survivors of a larger radius, though any attack breaks them at both."""
    search = Search.over(*trained)
    survives = np.arange(36) >= 27
    outcomes = [outcome("none", 0.0, np.ones(36)), *(outcome("worst", eps, survives) for eps in (0.3, 0.5))]
    found = gates.check(search, SUITE, pd.concat(outcomes), seed=0, surrogates={}, report=silent).set_index("gate")
    gate = found.loc["left out at this radius, but broken"]
    assert (gate["eps"], gate["measured"], gate["passed"]) == (0.3, 0.25, False)
    alone = gates.check(search, replace(SUITE, alone=True), pd.concat(outcomes), seed=0, surrogates={}, report=silent)
    assert gate.name not in set(alone["gate"]), "alone, nothing is left out"


def test_too_coarse_arithmetic_and_broken_certificates_are_caught() -> None:
    places = np.arange(100)
    outcomes = pd.concat(
        [
            outcome("none", 0.0, np.ones(100), (places < 10).astype(int)),
            outcome("worst", 0.1, places >= 50, ((places >= 5) & (places < 20)).astype(int)),
            outcome("certified", 0.1, places >= 47),
        ]
    )
    precision, certificate = gates._from_outcomes(outcomes, 0.1, standard_error(50, 100))
    assert precision.gate == "float32 and exact ranking disagree"
    assert precision.measured == pytest.approx(0.2), "in one of the two images"
    assert (precision.limit, precision.passed) == (standard_error(50, 100), False)
    assert certificate.gate == "certified queries that the attack broke"
    assert certificate.measured == pytest.approx(0.03)
    assert (certificate.limit, certificate.passed) == (0.0, False)
    honest = outcomes[(outcomes["attack"] != "certified")].assign(disagree=0)
    (precision,) = gates._from_outcomes(honest, 0.1, standard_error(50, 100))
    assert precision.passed
