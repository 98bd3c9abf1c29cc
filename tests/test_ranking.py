"""The field's ranking attacks: objectives and ranks against plain loops, who is perturbed, and published scores."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objectives import problem

from dml.attacks.objectives import ranking
from dml.attacks.optimisers import pgd as optimiser
from dml.data.base import Split
from dml.evaluation.suites import ranking as suite_module
from dml.evaluation.suites.ranking import Ranking, any_item
from dml.models.embedder import build
from dml.retrieval.gallery import Gallery, Queries
from dml.retrieval.index import Search

NAMES = ("CA+", "CA-", "QA+", "QA-", "TMA", "ES:D", "ES:R", "LTM", "GTM", "GTT")
# Zhou and Patel (CVPR 2022), their own table: ten scores, and the ERS they report.
PUBLISHED = [
    ((0.0, 100, 0.0, 99.9, 0.883, 1.762, 0.0, 0.0, 14.1, 0.0), 3.8),
    ((2.7, 97.9, 0.4, 97.3, 0.848, 1.576, 1.4, 0.0, 4.0, 0.0), 5.3),
    ((15.5, 37.7, 15.1, 32.2, 0.472, 0.821, 11.1, 9.4, 14.9, 1.0), 33.9),
    ((15.5, 37.7, 16.6, 30.9, 0.753, 0.506, 17.9, 16.7, 27.3, 2.9), 36.0),
    ((0.2, 100, 0.1, 99.6, 0.874, 1.816, 0.0, 0.0, 13.4, 0.0), 3.6),
    ((18.0, 32.3, 17.5, 30.5, 0.383, 0.763, 16.3, 15.3, 20.7, 1.6), 38.6),
    ((19.3, 25.9, 19.6, 25.7, 0.650, 0.446, 30.3, 36.7, 46.0, 8.8), 46.0),
    ((0.1, 99.3, 0.2, 99.1, 0.845, 1.685, 0.0, 0.0, 6.3, 0.0), 4.0),
    ((24.1, 10.5, 22.7, 9.4, 0.253, 0.532, 21.2, 21.6, 27.8, 15.3), 50.8),
    ((30.6, 4.7, 31.2, 3.5, 0.466, 0.266, 38.6, 40.3, 38.6, 44.3), 61.8),
]


@pytest.mark.parametrize(("scores", "reported"), PUBLISHED)
def test_ers_gives_the_published_rows(scores: tuple[float, ...], reported: float) -> None:
    assert ranking.ers(dict(zip(NAMES, scores, strict=True))) == pytest.approx(reported, abs=0.1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), raise_rank=st.booleans())
def test_candidate_and_query_attacks_equal_a_plain_loop(seed: int, raise_rank: bool) -> None:
    """Rows 0 to 4 are the queries; ``images`` are perturbed candidates in CA and perturbed queries in QA."""
    model, images, queries, gallery = problem(seed)
    candidate = torch.randint(6, 20, (5,), generator=torch.Generator().manual_seed(seed))
    items, natural = gallery.embeddings, gallery.embeddings[:5]
    embeddings = model(images).detach()
    counted, fixed = ranking.others(queries, candidate, gallery), items[candidate]
    found = {
        "CA": ranking.candidate_objective(model, gallery, natural, counted, raise_rank=raise_rank)(images),
        "QA": ranking.query_objective(model, gallery, fixed, counted, raise_rank=raise_rank)(images),
    }
    places = {
        "CA": ranking.rank_percentile((embeddings - natural).norm(dim=1), ranking.distances(natural, gallery), counted),
        "QA": ranking.rank_percentile(
            (embeddings - fixed).norm(dim=1), ranking.distances(embeddings, gallery), counted
        ),
    }
    for row in range(5):
        for kind, query in (("CA", natural[row]), ("QA", embeddings[row])):
            answer = embeddings[row] if kind == "CA" else fixed[row]
            mine = float((query - answer).norm())
            total, nearer, number = 0.0, 0, 0
            for item in range(20):
                if item in (row, int(candidate[row])):
                    continue
                theirs = float((query - items[item]).norm())
                total += max(0.0, mine - theirs if raise_rank else theirs - mine)
                nearer += mine > theirs + 1e-9
                number += 1
            assert float(found[kind][row]) == pytest.approx(-total / number, abs=1e-5)
            assert float(places[kind][row]) == pytest.approx(100 * nearer / number, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_target_of_gtm_is_the_nearest_item_of_another_class(seed: int) -> None:
    model, images, queries, gallery = problem(seed, count=20)
    found = ranking.nearest_wrong_item(model(images), queries, gallery)
    for row in range(20):
        apart = [
            (float((model(images)[row] - gallery.embeddings[item]).norm()), item)
            for item in range(20)
            if gallery.labels[item] != queries.labels[row]
        ]
        assert int(found[row]) == min(apart)[1]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_misrank_by_hand(seed: int) -> None:
    model, images, queries, gallery = problem(seed)
    misrank = ranking.misrank_objective(model, queries, gallery)(images)
    for row in range(5):
        apart = (model(images)[row] - gallery.embeddings).norm(dim=1).tolist()
        right = [apart[i] for i in range(20) if gallery.labels[i] == queries.labels[row] and i != row]
        wrong = [apart[i] for i in range(20) if gallery.labels[i] != queries.labels[row]]
        assert float(misrank[row]) == pytest.approx(min(right) - max(wrong), abs=1e-6)


def test_the_suite_gives_all_scores_in_their_ranges(toy_split: Split) -> None:
    search = Search.over(build("conv4", 8, seed=0, statistics=toy_split.statistics()), toy_split)
    weak, strong = (
        Ranking(queries=8, eps=(eps,), steps=16).evaluate(search, np.arange(8), seed=0, report=lambda line: None)
        for eps in (0.0, 0.05)
    )
    ten = ("CA+", "QA+", "CA-", "QA-", "TMA", "ES:D", "GTT", "ES:R", "LTM", "GTM")
    assert list(weak.scores) == [*ten, "ERS", "ERS low", "ERS high"]
    for scores in (weak.scores, strong.scores):
        assert all(0 <= scores[name] <= 100 for name in ("CA+", "CA-", "QA+", "QA-", "ES:R", "LTM", "GTM", "GTT"))
        assert 0 <= scores["ES:D"] <= 2
    assert weak.scores["ES:D"] < 1e-3, "nothing moves at eps 0"
    assert weak.scores["GTT"] == 100
    assert strong.scores["CA+"] <= weak.scores["CA+"]
    assert strong.scores["QA-"] >= weak.scores["QA-"]
    assert strong.scores["TMA"] > weak.scores["TMA"]
    assert strong.scores["ERS"] < weak.scores["ERS"]
    assert strong.scores["ERS"] == pytest.approx(ranking.ers(strong.scores), abs=1e-9)
    assert strong.scores["ERS low"] < strong.scores["ERS"] < strong.scores["ERS high"]
    assert set(strong.outcomes["attack"]) == {"none", "es", "ltm", "gtm"}
    left = strong.outcomes.groupby("attack")["r1"].mean() * 100
    assert (left["es"], left["ltm"], left["gtm"]) == tuple(strong.scores[name] for name in ("ES:R", "LTM", "GTM"))


def test_the_suite_is_for_one_radius() -> None:
    with pytest.raises(ValueError, match="eps lists 2 radii"):
        Ranking(queries=3, eps=(0.1, 0.2))


def test_a_candidate_attack_perturbs_the_candidate_that_the_query_ranks(
    toy_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attacked row is the query. CA- perturbs one of the items nearest to the query, CA+ any other item.

    The old suite took the attacked row for the candidate, and in CA- an item near to it for the query.
    """
    split = Split(np.repeat(toy_split.images, 8, axis=0), np.repeat(toy_split.labels, 8), toy_split.class_names)
    noisy = split.images.astype(int) + np.random.default_rng(0).integers(-9, 9, split.images.shape)
    split = Split(np.clip(noisy, 0, 255).astype(np.uint8), split.labels, split.class_names)
    search = Search.over(build("conv4", 8, seed=0, statistics=split.statistics()), split)
    seen: list[torch.Tensor] = []

    def watched(images: torch.Tensor, *arguments: object, **settings: object) -> torch.Tensor:
        seen.append(images)
        return optimiser.pgd(images, *arguments, **settings)

    monkeypatch.setattr(suite_module, "pgd", watched)
    rows = np.array([100, 3, 250])
    Ranking(queries=3, eps=(0.01,), steps=1).evaluate(search, rows, seed=0, report=lambda line: None)
    names = ["CA+", "QA+", "CA-", "QA-", "TMA", "ES", "GTT", "LTM", "GTM"]
    perturbed = dict(zip(names, seen, strict=True))
    queries = search.images(rows)
    assert all(torch.equal(perturbed[name], queries) for name in names if not name.startswith("CA"))
    everything = search.images(np.arange(len(split)))
    similarity = (search.gallery.embeddings @ search.gallery.embeddings.T).fill_diagonal_(-2)
    for place, row in enumerate(rows):
        same = (everything == perturbed["CA-"][place]).flatten(1).all(1)
        nearest = similarity[row].topk(3).indices  # 1% of 288 items
        assert same[nearest].any(), "the candidate is near to the query"
        assert not same[row]
        assert not torch.equal(perturbed["CA+"][place], queries[place])


@pytest.mark.parametrize("apart", [False, True])
def test_groups_and_queries_apart_from_the_gallery(toy_split: Split, apart: bool) -> None:
    groups = np.arange(36) // 2
    parts = [slice(0, None, 2), slice(1, None, 2)] if apart else [slice(None)]
    splits = [
        Split(toy_split.images[part], toy_split.labels[part], toy_split.class_names, groups[part]) for part in parts
    ]
    search = Search.over(build("conv4", 8, seed=0, statistics=toy_split.statistics()), *splits)
    rows = np.array([5, 0, 11, 2])
    found = Ranking(queries=4, eps=(0.0,), steps=2).evaluate(search, rows, seed=0, report=lambda line: None)
    natural = found.outcomes[found.outcomes["attack"] == "none"]
    np.testing.assert_array_equal(natural["r1"], search.natural().r1.numpy()[rows])
    assert found.scores["GTT"] == 100
    assert found.scores["ES:D"] < 1e-3


def test_a_small_gallery_is_refused(toy_split: Split) -> None:
    search = Search.over(
        build("conv4", 8, seed=0), Split(toy_split.images[3:9], toy_split.labels[3:9], toy_split.class_names)
    )
    with pytest.raises(ValueError, match="need 6 gallery items besides the query and its group; there are 5"):
        Ranking(queries=1, eps=(0.1,)).evaluate(search, np.array([0]), seed=0, report=lambda line: None)


def test_any_item_is_any_but_the_ignored_ones_equally_often() -> None:
    labels, own = torch.arange(8) % 2, torch.tensor([3]).expand(8000)
    gallery = Gallery(torch.randn(8, 4), labels, torch.tensor([0, 0, 1, 1, 1, 2, 2, 2]))
    groups = {"group": torch.ones(8000, dtype=torch.long), "apart": torch.full((8000,), -1)}
    for name, allowed in (("group", {0, 1, 5, 6, 7}), ("apart", set(range(8)))):
        rows = own if name == "group" else torch.full((8000,), -1)
        found = any_item(Queries(labels[own], groups[name], rows), gallery, torch.Generator().manual_seed(0))
        counts = torch.bincount(found, minlength=8)
        assert set(counts.nonzero().flatten().tolist()) == allowed
        assert (counts[counts > 0] / 8000 - 1 / len(allowed)).abs().max() < 0.02
