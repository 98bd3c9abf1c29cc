"""The field's ranking attacks: objectives and ranks against plain loops, targets, and the published scores."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objectives import problem

from dml.attacks.objectives import ranking
from dml.data import Split
from dml.evaluation.suites import Ranking
from dml.models.embedder import build
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
    model, images, queries, gallery = problem(seed)
    partner = torch.randint(6, 20, (5,), generator=torch.Generator().manual_seed(seed))
    items, own = gallery.embeddings, queries.own
    embeddings = model(images)
    found = {
        "CA": ranking.candidate_objective(model, gallery, own, partner, raise_rank=raise_rank)(images),
        "QA": ranking.query_objective(model, gallery, own, partner, raise_rank=raise_rank)(images),
    }
    counted = ranking.others(own, partner, gallery)
    fixed = items[partner]
    places = {
        "CA": ranking.rank_percentile((embeddings - fixed).norm(dim=1), ranking.distances(fixed, gallery), counted),
        "QA": ranking.rank_percentile(
            (embeddings - fixed).norm(dim=1), ranking.distances(embeddings, gallery), counted
        ),
    }
    for row in range(5):
        for kind, asking in (("CA", items[partner[row]]), ("QA", embeddings[row])):
            answer = embeddings[row] if kind == "CA" else items[partner[row]]
            mine = float((asking - answer).norm())
            total, nearer, number = 0.0, 0, 0
            for item in range(20):
                if item in (int(own[row]), int(partner[row])):
                    continue
                theirs = float((asking - items[item]).norm())
                total += max(0.0, mine - theirs if raise_rank else theirs - mine)
                nearer += mine > theirs
                number += 1
            assert float(found[kind][row]) == pytest.approx(-total / number, abs=1e-6)
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
def test_misrank_and_translocation_by_hand(seed: int) -> None:
    model, images, queries, gallery = problem(seed)
    misrank = ranking.misrank_objective(model, queries, gallery)(images)
    top = torch.tensor([7, 8, 9, 10, 11])
    moved = ranking.translocation_objective(model, queries, gallery, top)(images)
    for row in range(5):
        apart = (model(images)[row] - gallery.embeddings).norm(dim=1).tolist()
        right = [apart[i] for i in range(20) if gallery.labels[i] == queries.labels[row] and i != row]
        wrong = [apart[i] for i in range(20) if gallery.labels[i] != queries.labels[row]]
        assert float(misrank[row]) == pytest.approx(min(right) - max(wrong), abs=1e-6)
        rest = sorted(apart[i] for i in range(20) if i not in (row, int(top[row])))
        assert float(moved[row]) == pytest.approx(apart[int(top[row])] - rest[3], abs=1e-6)


def test_the_suite_gives_all_scores_in_their_ranges(toy_split: Split) -> None:
    search = Search.over(build("conv4", 8, seed=0, **toy_split.statistics()), toy_split)
    weak, strong = (
        Ranking(queries=8, eps=(eps,), steps=16).evaluate(search, np.arange(8), seed=0, report=lambda line: None)
        for eps in (0.0, 0.05)
    )
    assert list(weak.scores) == [*("CA+", "QA+", "CA-", "QA-", "TMA", "ES:D", "GTT", "ES:R", "LTM", "GTM"), "ERS"]
    for scores in (weak.scores, strong.scores):
        assert all(0 <= scores[name] <= 100 for name in ("CA+", "CA-", "QA+", "QA-", "ES:R", "LTM", "GTM", "GTT"))
        assert 0 <= scores["ES:D"] <= 2
    assert weak.scores["ES:D"] < 1e-3, "nothing moves at eps 0"
    assert weak.scores["GTT"] == 100
    assert strong.scores["CA+"] <= weak.scores["CA+"]
    assert strong.scores["QA-"] >= weak.scores["QA-"]
    assert strong.scores["TMA"] > weak.scores["TMA"]
    assert strong.scores["ERS"] < weak.scores["ERS"]
    assert set(strong.outcomes["attack"]) == {"none", "es", "ltm", "gtm"}
    left = strong.outcomes.groupby("attack")["r1"].mean() * 100
    assert (left["es"], left["ltm"], left["gtm"]) == tuple(strong.scores[name] for name in ("ES:R", "LTM", "GTM"))


def test_the_suite_is_for_one_radius() -> None:
    with pytest.raises(ValueError, match="eps lists 2 radii"):
        Ranking(queries=3, eps=(0.1, 0.2))
