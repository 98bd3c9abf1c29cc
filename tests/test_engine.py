"""The engine: it attacks what it says, keeps each query's worst outcome, and resumes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from dml.attacks.balls import L2, Ball, Linf
from dml.data.base import Split
from dml.evaluation.engine import Group, Worst, attack
from dml.evaluation.examples import Examples, example_images, example_rows, examples, telling_examples
from dml.evaluation.outcomes import natural_scores, summarise, survival
from dml.evaluation.statistics import wilson
from dml.evaluation.suites.attacks import AttackSuite
from dml.models.embedder import build
from dml.retrieval.gallery import Queries
from dml.retrieval.index import Search

SUITE = AttackSuite(
    queries=12,
    eps=(0.0, 0.02, 0.1, 1.0),
    attacks={
        "margin": {"steps": 6},
        "targeted": {"steps": 4, "classes": 2},
        "cross_entropy": {"steps": 2},
        "square": {"tries": 5},
    },
)
ROWS = np.random.default_rng(0).permutation(np.arange(0, 36, 3))  # rows come in any order


@pytest.fixture
def search(toy_split: Split) -> Search:
    return Search.over(build("conv4", 8, seed=0, statistics=toy_split.statistics()), toy_split)


@pytest.fixture
def apart(toy_split: Split) -> Search:
    """Even images are the gallery, odd ones the queries."""
    halves = [Split(toy_split.images[part::2], toy_split.labels[part::2], toy_split.class_names) for part in (0, 1)]
    return Search.over(build("conv4", 8, seed=0, statistics=toy_split.statistics()), *halves)


@pytest.fixture
def outcomes(search: Search) -> pd.DataFrame:
    return SUITE.evaluate(search, ROWS, seed=0, report=silent).outcomes


def silent(line: str) -> None:
    """Progress is not looked at here."""


def test_radius_zero_is_natural_and_a_large_radius_fools_all(search: Search, outcomes: pd.DataFrame) -> None:
    r1 = outcomes[outcomes["attack"] == "worst"].pivot_table(index="query", columns="eps", values="r1")
    natural = outcomes[outcomes["attack"] == "none"].set_index("query")
    assert (r1.loc[ROWS, 0.0] == natural["r1"]).all()
    assert natural["r1"].mean() > 0.8
    assert r1[1.0].sum() == 0
    assert (r1.mean().diff().iloc[1:] <= 0).all(), "R@1 falls as the radius grows"
    expected = search.natural()
    np.testing.assert_array_equal(natural["r1"], expected.r1.numpy()[ROWS])
    np.testing.assert_allclose(natural["map_r"], expected.map_r.numpy()[ROWS], atol=1e-6)


def test_what_survives_a_larger_ball_is_not_attacked_in_a_smaller_one(search: Search) -> None:
    """And what is found there comes first, moved into the smaller ball; each attack gets the rest."""
    tried: dict[float, list[int]] = {}
    kept: dict[float, Tensor] = {}
    rows = np.arange(0, 36, 3)

    def run(images: Tensor, queries: Queries, ball: Linf, generator: torch.Generator) -> Tensor:
        tried.setdefault(ball.eps, []).extend(queries.own.tolist())
        return SUITE.runs(search)[0].runs[0](images, queries, ball, generator)

    def keep(ball: Linf, images: Tensor) -> None:
        kept[ball.eps] = images.clone()

    groups, balls = [Group("margin", [run])], [Linf(0.003), Linf(0.01)]
    table = attack(search, rows, groups, balls, seed=0, keep=keep, report=silent)
    assert list(table["eps"].unique()) == [0.0, 0.003, 0.01], "in the order of the balls"
    worst = table[table["attack"] == "worst"].set_index(["eps", "query"])
    left = worst["r1"].loc[0.01].eq(1)
    assert 0 < left.sum() < len(tried[0.01])
    assert set(tried[0.003]) <= set(left.index[~left])
    assert worst["r1"].loc[0.003][left].all()
    clean = search.images(rows)
    assert list(kept) == [0.01, 0.003]
    for eps, images in kept.items():
        assert float((images - clean).abs().max()) <= eps
    moved = (kept[0.003] != clean).flatten(1).any(1).numpy()
    assert moved[left.loc[rows].to_numpy()].any(), "images of those left out are moved in, too"


@pytest.mark.parametrize("ball", [Linf(0.03), L2(0.5)])
def test_an_attack_that_leaves_the_ball_is_refused(search: Search, ball: Ball) -> None:
    def moved(clean: Tensor) -> list[Tensor]:
        return [clean + 0.2, clean * torch.nan, clean - 1e-3]

    for place in range(3):
        group = Group("cheat", [lambda clean, queries, ball, generator, place=place: moved(clean)[place]])
        with pytest.raises(ValueError, match=r"an attack returned images outside the ball of eps"):
            attack(search, ROWS, [group], [type(ball)(1e-4)], seed=0, report=silent)


def test_worst_is_at_most_margin(outcomes: pd.DataFrame) -> None:
    assert set(outcomes["attack"]) == {"none", "margin", "worst"}
    table = outcomes[outcomes["eps"] > 0].pivot_table(index=["query", "eps"], columns="attack", values="r1")
    assert (table["worst"] <= table["margin"]).all()


def test_same_seed_same_outcomes_whatever_the_chunks(search: Search, outcomes: pd.DataFrame) -> None:
    again = SUITE.evaluate(search, ROWS, seed=0, report=silent).outcomes
    pd.testing.assert_frame_equal(outcomes, again)
    lines: list[str] = []
    balls = [Linf(eps) for eps in SUITE.eps]
    parts = attack(search, ROWS, SUITE.runs(search), balls, seed=0, chunk_size=5, report=lines.append)
    assert len(lines) == 3
    assert lines[0].startswith("attacked 5/12 queries, R@1 left: ")
    assert len(parts) == len(outcomes)
    both = [frame[frame["eps"].isin([0.0, 1.0])].sort_values(["query", "eps", "attack"]) for frame in (outcomes, parts)]
    np.testing.assert_array_equal(both[0]["r1"], both[1]["r1"])


def test_survival_is_in_the_suites_order(outcomes: pd.DataFrame) -> None:
    found = survival(outcomes)
    for eps, word in found.items():
        rows = outcomes[(outcomes["attack"] == "worst") & np.isclose(outcomes["eps"], float(eps))].set_index("query")
        assert [int(letter) for letter in word] == rows["r1"].loc[ROWS].tolist()


@pytest.mark.parametrize("kind", ["search", "apart"])
def test_natural_scores_are_over_all_queries(kind: str, request: pytest.FixtureRequest) -> None:
    search = request.getfixturevalue(kind)
    scores = natural_scores(search)
    assert scores["queries"] == len(search)
    assert scores["r1"] == pytest.approx(search.natural().r1.double().mean().item())
    assert scores["r1"] <= scores["r2"] <= scores["r4"] <= scores["r8"]


def test_queries_apart_from_the_gallery_are_attacked(apart: Search) -> None:
    outcomes = SUITE.evaluate(apart, np.arange(17, -1, -2), seed=0, report=silent).outcomes
    r1 = outcomes[outcomes["attack"] == "worst"].pivot_table(index="eps", values="r1")["r1"]
    assert r1[0.0] == apart.natural().r1.numpy()[1::2].mean()
    assert r1[1.0] == 0
    shown = examples(apart, np.array([3, 8]), SUITE.runs(apart), 0.1, seed=0)
    np.testing.assert_array_equal(shown.labels, apart.query_split.labels[[3, 8]])
    np.testing.assert_allclose(shown.clean[0], apart.query_split.images[3] / 255, atol=1e-6)
    embedded = apart.model(torch.from_numpy(shown.clean).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(shown.start, embedded, atol=1e-5)


class Breaking(nn.Module):
    """Gives no number for an image whose mean exceeds a bound, as an overflow would."""

    def __init__(self, inner: nn.Module, bound: float) -> None:
        super().__init__()
        self.inner, self.bound = inner, bound

    def forward(self, images: Tensor) -> Tensor:
        broken = images.mean((1, 2, 3), keepdim=True)[:, :, 0, 0] > self.bound
        return torch.where(broken, torch.nan, self.inner(images))


def test_a_query_breaks_where_the_model_gives_no_number(search: Search) -> None:
    """Comparisons with no number are false: the old engine kept the natural margin, and the query survived."""
    brightest = float(search.images(ROWS).mean((1, 2, 3)).max())
    model = Breaking(search.model, brightest + 0.005)
    broken = Search(model, search.split, search.gallery, search.query_split)
    brighter = Group("brighter", [lambda images, queries, ball, generator: (images + ball.eps).clamp(0, 1)])
    natural = attack(broken, ROWS, [brighter], [Linf(0.0)], seed=0, report=silent)
    assert natural["r1"].mean() > 0.8
    left = attack(broken, ROWS, [brighter], [Linf(0.9)], seed=0, report=silent)
    assert left.loc[left["attack"] != "none", "r1"].sum() == 0


def test_an_outcome_is_decided_exactly(search: Search) -> None:
    """Where every embedding lies within rounding of all others, no query survives, though float32 finds an order."""

    class Collapsed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: Tensor) -> Tensor:
            anchor = torch.ones(8) / 8**0.5
            return nn.functional.normalize(anchor + 1e-4 * self.inner(images), dim=1)

    collapsed = Search.over(Collapsed(search.model), search.split)
    table = attack(collapsed, np.arange(36), [], [Linf(0.0)], seed=0, report=silent)
    natural = table[table["attack"] == "none"]
    embeddings = collapsed.gallery.embeddings
    similarity = (embeddings @ embeddings.T).fill_diagonal_(-2)
    right = collapsed.gallery.labels == collapsed.gallery.labels[:, None]
    right.fill_diagonal_(False)
    rough = similarity.masked_fill(~right, -2).amax(1) - similarity.masked_fill(right, -2).amax(1)
    assert (natural["r1"] == 0).mean() > 0.5
    assert set(natural.loc[natural["disagree"] == 1, "r1"]) <= {0}
    assert natural["disagree"].sum() > 0
    assert (rough.numpy()[natural["disagree"] == 1] > -1e-6).all()


def test_examples_come_back_from_disk(search: Search, tmp_path: Path) -> None:
    rows = example_rows(search, classes=3, images=2, seed=0)
    assert len(np.unique(search.split.labels[rows])) == 3
    shown = examples(search, rows, SUITE.runs(search), 0.1, seed=0)
    assert np.abs(shown.perturbed - shown.clean).max() <= 0.1
    after = search.model(torch.from_numpy(shown.perturbed).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(shown.end, after, atol=1e-5)
    shown.write(tmp_path / "examples.npz")
    again = Examples.read(tmp_path / "examples.npz")
    for name, value in vars(shown).items():
        np.testing.assert_array_equal(value, getattr(again, name))


def test_telling_examples_are_right_before_and_broken_after(search: Search) -> None:
    rows = example_rows(search, classes=3, images=3, seed=0)
    labels = search.split.labels
    right, wrong = ([np.flatnonzero((labels == labels[row]) == same)[:5] for row in rows] for same in (True, False))
    before = [
        np.r_[wrong[0][:1], right[0][:4]],  # four right, but not the first
        right[1],  # the best before, but it survives
        np.r_[right[2][:1], wrong[2][:4]],  # broken: the best of its class
        np.r_[right[3][:1], wrong[3][:4]],  # survives: the best of its class
        wrong[4],
        wrong[5],
        np.r_[right[6][:2], wrong[6][:3]],  # broken, and better before than the one of the first class
        np.r_[right[7][:1], wrong[7][:4]],
        wrong[8],
    ]
    after = [wrong[0], right[1], wrong[2], right[3], wrong[4], wrong[5], wrong[6], wrong[7], wrong[8]]
    shown = examples(search, rows, SUITE.runs(search), 0.1, seed=0)
    shown = replace(shown, before=np.stack(before), after=np.stack(after))
    assert telling_examples(search.split, shown, count=3) == [6, 2, 3]
    assert telling_examples(search.split, shown, count=1) == [6]
    clean, _, retrieved, _ = example_images(search.split, shown, 6)
    np.testing.assert_array_equal(clean, shown.clean[6])
    assert [hit for _, hit in retrieved] == [True, True, False, False, False]
    np.testing.assert_array_equal(retrieved[0][0], search.split.images[right[6][0]])


def test_a_killed_evaluation_continues_after_its_finished_queries(search: Search, tmp_path: Path) -> None:
    groups, done = SUITE.runs(search), []

    def run(stop_after: int | None) -> pd.DataFrame:
        def told(line: str) -> None:
            done.append(line)
            if len(done) == stop_after:
                raise KeyboardInterrupt

        return attack(search, ROWS, groups, [Linf(0.05)], seed=0, folder=tmp_path, chunk_size=4, report=told)

    whole = attack(search, ROWS, groups, [Linf(0.05)], seed=0, chunk_size=4, report=silent)
    with pytest.raises(KeyboardInterrupt):
        run(2)
    finished = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(finished) == 2
    first, *_ = done
    done.clear()
    pd.testing.assert_frame_equal(run(None), whole)
    assert {file: file.stat().st_mtime_ns for file in finished} == finished, "not attacked again"
    assert done[0] == first
    assert len(done) == 3
    assert {file.suffix for file in tmp_path.iterdir()} == {".npz"}, "files that run no code when they are read"


def test_alone_each_attack_meets_all_queries(search: Search) -> None:
    groups = SUITE.runs(search)
    table = attack(search, np.arange(12), groups, [Linf(0.05)], seed=0, alone=True, report=silent)
    left = table.pivot_table(index="query", columns="attack", values="r1")
    assert set(left) == {"none", "worst", *(group.name for group in groups)}
    own = left[[group.name for group in groups]]
    assert (left["worst"] == own.min(axis=1)).all()


def test_alone_what_breaks_in_a_small_ball_is_broken_in_a_larger_one(search: Search) -> None:
    def early(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
        """Finds the answer in the small ball only."""
        other = search.images(np.array([17])).expand_as(images)
        return ball.project(other, images) if ball.eps < 0.4 else images

    rows = search.natural().r1.nonzero().flatten().numpy()[:6]
    balls = [Linf(0.5), Linf(0.3)]
    table = attack(search, rows, [Group("early", [early])], balls, seed=0, alone=True, report=silent)
    left = table[table["attack"] != "none"].pivot_table(index="query", columns=["attack", "eps"], values="r1")
    assert left["early"][0.3].sum() < left["early"][0.5].sum() == len(rows)
    assert left["worst"][0.5].tolist() == left["worst"][0.3].tolist() == left["early"][0.3].tolist()


def test_alone_an_attack_on_map_keeps_the_images_with_the_lowest_map(search: Search) -> None:
    suite = AttackSuite(36, (0.003,), {"map": {"steps": 10}}, alone=True)
    table = suite.evaluate(search, np.arange(36), seed=0, report=silent).outcomes
    map_r = table.pivot_table(index="query", columns="attack", values="map_r")
    natural = search.natural().map_r.numpy()
    assert (map_r["map"] <= natural + 1e-9).all()
    wrong = ~search.natural().r1.numpy()
    assert wrong.any()
    lower = map_r["map"][wrong] < natural[wrong]
    assert lower.any(), "also those whose nearest item is wrong already"
    images = search.images(np.array([0]))
    assert Worst(search, images, search.queries(np.array([0])), "map_r").value == -search.natural().map_r[0]


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
    assert survival(table) == {"0.100000": "1001"}


def test_an_attack_on_map_meets_every_query_and_keeps_its_own_images(search: Search) -> None:
    attacks = {"margin": {"steps": 6}, "map": {"steps": 6}}
    suite = AttackSuite(queries=12, eps=(0.05,), attacks=attacks)
    outcomes = suite.evaluate(search, ROWS, seed=0, report=silent).outcomes
    rows = {name: table.set_index("query").loc[ROWS] for name, table in outcomes.groupby("attack")}
    assert set(rows) == {"none", "margin", "map", "worst"}
    assert rows["map"]["map_r"].mean() < rows["margin"]["map_r"].mean(), "it lowers what it says"
    assert (rows["map"]["map_r"] <= rows["none"]["map_r"] + 1e-9).all()
    assert (rows["worst"]["r1"] == rows["margin"]["r1"] * rows["map"]["r1"]).all(), "what it breaks counts"
    alone = replace(suite, attacks={"map": {"steps": 6}}).evaluate(search, ROWS, seed=0, report=silent).outcomes
    alone = alone[alone["attack"] == "map"].set_index("query").loc[ROWS]
    pd.testing.assert_series_equal(rows["map"]["map_r"], alone["map_r"])
