"""Gates: models that only seem robust are caught, an honest one passes."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from dml import gates
from dml.datasets import Split
from dml.models import Embedder, build
from dml.retrieval import Search
from dml.statistics import standard_error
from dml.suites import Auto

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
        EPS,
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
    assert len(table) == 9


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


@pytest.mark.parametrize(
    ("left", "expected"),
    [((60, 30), 0.2), ((60, 2), 0.2), ((60, 1), 0.1), ((60, 0), 0.1), ((0, 0), 0.1), ((1, 1), 0.1)],
)
def test_gates_look_where_they_can_fail(left: tuple[int, int], expected: float) -> None:
    outcomes = pd.concat([standing("none", 0.0, 90), standing("worst", 0.1, left[0]), standing("worst", 0.2, left[1])])
    assert gates.telling_radius(outcomes) == expected


def test_a_gate_can_fail_where_gates_look_and_not_beyond() -> None:
    for left in range(101):
        outcomes = standing("worst", 0.1, left)
        can_fail = left / 100 > standard_error(left, 100)
        both = pd.concat([outcomes, standing("worst", 0.05, 100)])
        assert gates.telling_radius(both) == (0.1 if can_fail else 0.05)


def test_a_rise_with_eps_is_caught() -> None:
    falling = pd.concat([standing("none", 0.0, 90), standing("worst", 0.1, 60), standing("worst", 0.2, 30)])
    rising = pd.concat([standing("none", 0.0, 90), standing("worst", 0.1, 30), standing("worst", 0.2, 60)])
    assert gates._falls(falling, 0.05).passed
    found = gates._falls(rising, 0.05)
    assert not found.passed
    assert found.measured == pytest.approx(0.3)


def test_gates_need_the_radius_to_be_attacked(trained: tuple[Embedder, Split]) -> None:
    search = Search.over(*trained)
    outcomes = SUITE.evaluate(search, np.arange(4), seed=0, report=lambda line: None).outcomes
    with pytest.raises(ValueError, match="did not attack at eps 8/255"):
        gates.check(search, [], [], outcomes, 8 / 255, seed=0, surrogates={}, square_tries=1)
