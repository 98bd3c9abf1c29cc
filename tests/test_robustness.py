"""The evaluation: it attacks what it says, keeps each query's worst outcome, and its intervals are right."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dml import robustness
from dml.attacks.suite import Suite
from dml.datasets import Split
from dml.models import build
from dml.retrieval import Search
from dml.robustness import Examples, attack, example_rows, examples, natural_scores, pool_seeds, summarise, wilson

SUITE = Suite(queries=12, eps=(0.0, 0.02, 0.1, 1.0), margin_steps=6, targets=2, targeted_steps=4)


@pytest.fixture
def search(toy_split: Split) -> Search:
    return Search.over(build("conv4", 8, seed=0, **toy_split.statistics()), toy_split)


@pytest.fixture
def outcomes(search: Search) -> pd.DataFrame:
    return attack(search, np.arange(0, 36, 3), SUITE, seed=0, report=lambda line: None)


def test_radius_zero_is_natural_and_a_large_radius_fools_all(search: Search, outcomes: pd.DataFrame) -> None:
    r1 = outcomes[outcomes["attack"] == "worst"].pivot_table(index="query", columns="eps", values="r1")
    natural = outcomes[outcomes["attack"] == "none"].set_index("query")
    assert (r1[0.0] == natural["r1"]).all()
    assert natural["r1"].mean() > 0.8
    assert r1[1.0].sum() == 0
    assert (r1.mean().diff().iloc[1:] <= 0).all(), "R@1 falls as the radius grows"
    expected = search.natural()
    np.testing.assert_array_equal(natural["r1"], expected.r1.numpy()[::3])
    np.testing.assert_allclose(natural["map_r"], expected.map_r.numpy()[::3], atol=1e-6)


def test_worst_is_at_most_margin(outcomes: pd.DataFrame) -> None:
    assert set(outcomes["attack"]) == {"none", "margin", "worst"}
    table = outcomes[outcomes["eps"] > 0].pivot_table(index=["query", "eps"], columns="attack", values="r1")
    assert (table["worst"] <= table["margin"]).all()


def test_same_seed_same_outcomes_whatever_the_chunks(
    search: Search, outcomes: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = attack(search, np.arange(0, 36, 3), SUITE, seed=0, report=lambda line: None)
    pd.testing.assert_frame_equal(outcomes, again)
    monkeypatch.setattr(robustness, "CHUNK", 5)
    lines: list[str] = []
    parts = attack(search, np.arange(0, 36, 3), SUITE, seed=0, report=lines.append)
    assert len(lines) == 3
    assert lines[0].startswith("attacked 5/12 queries, R@1 left: ")
    assert len(parts) == len(outcomes)
    both = [frame[frame["eps"].isin([0.0, 1.0])].sort_values(["query", "eps", "attack"]) for frame in (outcomes, parts)]
    np.testing.assert_array_equal(both[0]["r1"], both[1]["r1"])


def test_natural_scores_are_over_the_whole_split(search: Search) -> None:
    scores = natural_scores(search)
    assert scores["queries"] == 36
    assert scores["r1"] == pytest.approx(search.natural().r1.double().mean().item())
    assert scores["r1"] <= scores["r2"] <= scores["r4"] <= scores["r8"]


def test_examples_come_back_from_disk(search: Search, tmp_path) -> None:  # noqa: ANN001
    rows = example_rows(search.split, classes=3, images=2, seed=0)
    assert len(np.unique(search.split.labels[rows])) == 3
    shown = examples(search, rows, SUITE, 0.1, seed=0)
    assert np.abs(shown.perturbed - shown.clean).max() <= 0.1
    after = search.model(torch.from_numpy(shown.perturbed).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(shown.end, after, atol=1e-5)
    shown.write(tmp_path / "examples.npz")
    again = Examples.read(tmp_path / "examples.npz")
    for name, value in vars(shown).items():
        np.testing.assert_array_equal(value, getattr(again, name))


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_interval(successes: int, trials: int) -> None:
    successes = min(successes, trials)
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert low < high
    for edge in (low, high):  # each end is where the observed share is 1.96 standard errors away
        if 0 < edge < 1:
            error = (edge * (1 - edge) / trials) ** 0.5
            assert abs(successes / trials - edge) == pytest.approx(1.959964 * error, rel=1e-6, abs=1e-12)


def test_seeds_are_pooled_by_counting_queries() -> None:
    keys = {
        "dataset": "d",
        "loss": "l",
        "defense": "robust",
        "suite": "quick",
        "attack": "worst",
        "norm": "linf",
        "eps": 0.1,
    }
    table = pd.DataFrame(
        [{**keys, "seed": 0, "queries": 100, "r1": 0.3}, {**keys, "seed": 1, "queries": 300, "r1": 0.5}]
    )
    (row,) = pool_seeds(table).itertuples()
    assert (row.queries, row.r1) == (400, 0.45)
    assert (row.r1_low, row.r1_high) == wilson(180, 400)


def test_summary_counts_queries() -> None:
    table = pd.DataFrame(
        {"query": [1, 2, 3, 4], "attack": "worst", "eps": 0.1, "r1": [1, 0, 0, 1], "map_r": [0.5, 0.1, 0.1, 0.3]}
    )
    row = summarise(table).iloc[0]
    assert (row["queries"], row["r1"], row["map_r"]) == (4, 0.5, 0.25)
    assert (row["r1_low"], row["r1_high"]) == wilson(2, 4)


def test_suite_refuses_a_negative_radius() -> None:
    with pytest.raises(ValueError, match=r"eps is -0\.1; it should be at least 0"):
        Suite(queries=3, eps=(-0.1,))
