"""Gates: models that only seem robust are caught, an honest one passes."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from dml.data import Split
from dml.evaluation import gates
from dml.evaluation.statistics import standard_error
from dml.evaluation.suites import Auto
from dml.models.embedder import Embedder, build
from dml.retrieval.index import Search

EPS = 0.06
SUITE = Auto(
    queries=36, eps=(EPS,), margin_steps=20, targets=3, targeted_steps=10, cross_entropy_steps=0, square_tries=0
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
    return build("conv4", 16, seed=0, **split.statistics()).eval(), split


def run(model: nn.Module, split: Split, surrogates: dict[str, Search] | None = None) -> tuple[pd.DataFrame, float]:
    search = Search.over(model, split)
    outcomes = SUITE.evaluate(search, np.arange(36), seed=0, report=lambda line: None).outcomes
    table = gates.check(
        search,
        SUITE.groups(search),
        SUITE.doubled().groups(search),
        outcomes,
        seed=0,
        surrogates=surrogates or {},
        square_tries=100,
        report=lambda line: None,
    )
    return table.set_index("gate"), outcomes[outcomes["attack"] == "worst"]["r1"].mean()


def test_an_honest_model_passes(trained: tuple[Embedder, Split]) -> None:
    table, _ = run(*trained, surrogates={"another": Search.over(build("conv4", 16, seed=3).eval(), trained[1])})
    assert table["passed"].all(), table
    assert table.loc["pictures changed at eps 0", "measured"] == 0
    assert "fall to pictures that fool another" in table.index
    assert len(table) == 8


def test_a_model_that_quantises_its_input_is_caught(trained: tuple[Embedder, Split]) -> None:
    honest, split = trained
    table, left = run(Quantised(honest), split, {"another": Search.over(honest, split)})
    _, honest_left = run(honest, split)
    assert left > honest_left, "it looks more robust"
    assert not table.loc["queries without a gradient", "passed"]
    assert table.loc["queries without a gradient", "measured"] == 1
    assert not table.loc["fall to pictures that fool another", "passed"], "its answers are still fragile"


def test_a_saturated_model_is_caught(trained: tuple[Embedder, Split]) -> None:
    table, _ = run(Saturated(trained[0]), trained[1])
    assert not table["passed"].all()
    assert not table.loc["queries without a gradient", "passed"]


def standing(attack: str, eps: float, left: int) -> pd.DataFrame:
    r1 = (np.arange(100) < left).astype(int)
    return pd.DataFrame({"query": np.arange(100), "attack": attack, "eps": eps, "r1": r1})


def test_the_gates_look_at_every_radius_and_at_queries_that_stand(trained: tuple[Embedder, Split]) -> None:
    """Queries that are marked as standing, though nothing was run on them, fall to anything: the share of all."""
    search = Search.over(*trained)
    fooled = np.arange(36) < 27
    outcomes = pd.concat(
        [pd.DataFrame({"query": np.arange(36), "attack": "none", "eps": 0.0, "r1": 1})]
        + [
            pd.DataFrame({"query": np.arange(36), "attack": "worst", "eps": eps, "r1": 1 - fooled.astype(int)})
            for eps in (EPS, 0.5)
        ]
    )
    table = gates.check(
        search,
        SUITE.groups(search),
        SUITE.groups(search),
        outcomes,
        seed=0,
        surrogates={},
        square_tries=1,
        report=lambda line: None,
    )
    found = table.set_index(["gate", "eps"])
    twice = found.loc["fall to twice the steps"]
    assert list(twice.index) == [EPS, 0.5]
    assert twice.loc[0.5, "measured"] == pytest.approx(9 / 36), "each of the nine that stand falls"
    assert twice.loc[0.5, "limit"] == pytest.approx(standard_error(9, 36))
    assert not twice.loc[0.5, "passed"]


def test_a_rise_with_eps_is_caught() -> None:
    falling = pd.concat([standing("none", 0.0, 90), standing("worst", 0.1, 60), standing("worst", 0.2, 30)])
    rising = pd.concat([standing("none", 0.0, 90), standing("worst", 0.1, 30), standing("worst", 0.2, 60)])
    assert [gate.passed for gate in gates._falls(falling)] == [True]
    (found,) = gates._falls(rising)
    assert not found.passed
    assert (found.measured, found.eps) == (pytest.approx(0.3), 0.2)
    assert gates._falls(falling[falling["eps"] < 0.2]) == [], "a gate that cannot fail is none"
