"""The evaluation: it attacks what it says, keeps each query's worst outcome, and its intervals are right."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dml.attacks import Linf
from dml.data import Split
from dml.evaluation.engine import (
    Examples,
    attack,
    example_rows,
    examples,
    fingerprint,
    natural_scores,
    standing,
    summarise,
    telling_examples,
)
from dml.evaluation.statistics import wilson
from dml.evaluation.suites import Auto
from dml.models.embedder import build
from dml.retrieval.index import Search

SUITE = Auto(
    queries=12,
    eps=(0.0, 0.02, 0.1, 1.0),
    margin_steps=6,
    targets=2,
    targeted_steps=4,
    cross_entropy_steps=2,
    square_tries=5,
)


@pytest.fixture
def search(toy_split: Split) -> Search:
    return Search.over(build("conv4", 8, seed=0, **toy_split.statistics()), toy_split)


@pytest.fixture
def outcomes(search: Search) -> pd.DataFrame:
    return SUITE.evaluate(search, np.arange(0, 36, 3), seed=0, report=lambda line: None).outcomes


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


def test_same_seed_same_outcomes_whatever_the_chunks(search: Search, outcomes: pd.DataFrame) -> None:
    again = SUITE.evaluate(search, np.arange(0, 36, 3), seed=0, report=lambda line: None).outcomes
    pd.testing.assert_frame_equal(outcomes, again)
    lines: list[str] = []
    balls = [Linf(eps) for eps in SUITE.eps]
    parts = attack(search, np.arange(0, 36, 3), SUITE.groups(search), balls, seed=0, chunk_size=5, report=lines.append)
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
    shown = examples(search, rows, SUITE.groups(search), 0.1, seed=0)
    assert np.abs(shown.perturbed - shown.clean).max() <= 0.1
    after = search.model(torch.from_numpy(shown.perturbed).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(shown.end, after, atol=1e-5)
    shown.write(tmp_path / "examples.npz")
    again = Examples.read(tmp_path / "examples.npz")
    for name, value in vars(shown).items():
        np.testing.assert_array_equal(value, getattr(again, name))


def test_examples_to_look_at_are_searches_that_find_first_what_is_right(search: Search) -> None:
    rows = example_rows(search.split, classes=3, images=2, seed=0)
    labels = search.split.labels
    right, wrong = ([np.flatnonzero((labels == labels[row]) == same)[:5] for row in rows] for same in (True, False))
    before = [
        np.r_[wrong[0][:1], right[0][:4]],  # four right, but not the first
        np.r_[right[1][:1], wrong[1][:4]],  # the first alone: the best of its class
        right[2],
        np.r_[right[3][:4], wrong[3][:1]],
        np.r_[wrong[4][:1], right[4][:4]],
        wrong[5],
    ]
    shown = replace(examples(search, rows, SUITE.groups(search), 0.1, seed=0), before=np.stack(before))
    assert telling_examples(search.split, shown, count=3) == [2, 1, 4]
    assert telling_examples(search.split, shown, count=1) == [2]


def test_a_killed_evaluation_goes_on_from_its_finished_queries(search: Search, tmp_path: Path) -> None:
    rows, groups, done = np.arange(0, 36, 3), SUITE.groups(search), []

    def run(stop_after: int | None) -> pd.DataFrame:
        def told(line: str) -> None:
            done.append(line)
            if len(done) == stop_after:
                raise KeyboardInterrupt

        folder = tmp_path / fingerprint(search, rows, SUITE, 0)
        return attack(search, rows, groups, [Linf(0.05)], seed=0, folder=folder, chunk_size=4, report=told)

    whole = attack(search, rows, groups, [Linf(0.05)], seed=0, chunk_size=4, report=lambda line: None)
    with pytest.raises(KeyboardInterrupt):
        run(2)
    done.clear()
    pd.testing.assert_frame_equal(run(None), whole)
    assert [line.split()[0] for line in done] == ["resumed", "resumed", "attacked"]


def test_another_evaluation_is_not_resumed(search: Search) -> None:
    rows = np.arange(4)
    first = fingerprint(search, rows, SUITE, 0)
    assert first == fingerprint(search, rows, SUITE, 0)
    assert first != fingerprint(search, rows, SUITE, 1)
    assert first != fingerprint(search, rows[:3], SUITE, 0)
    with torch.no_grad():
        next(search.model.parameters()).add_(1e-3)
    assert first != fingerprint(search, rows, SUITE, 0)


def test_alone_each_attack_meets_all_queries(search: Search) -> None:
    groups = SUITE.groups(search)
    table = attack(search, np.arange(12), groups, [Linf(0.05)], seed=0, alone=True, report=lambda line: None)
    left = table.pivot_table(index="query", columns="attack", values="r1")
    assert set(left) == {"none", "worst", *(name for name, _ in groups)}
    own = left[[name for name, _ in groups]]
    assert (left["worst"] == own.min(axis=1)).all()


def test_summary_counts_queries() -> None:
    table = pd.DataFrame(
        {
            "query": [1, 2, 3, 4],
            "attack": "worst",
            "norm": "linf",
            "eps": 0.1,
            "r1": [1, 0, 0, 1],
            "map_r": [0.5, 0.1, 0.1, 0.3],
        }
    )
    row = summarise(table).iloc[0]
    assert (row["queries"], row["r1"], row["map_r"]) == (4, 0.5, 0.25)
    assert (row["r1_low"], row["r1_high"]) == wilson(2, 4)
    assert standing(table) == {"0.100000": "1001"}
