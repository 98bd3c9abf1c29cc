"""Retrieval against brute force: ties, near-ties, groups, and queries apart from the gallery."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dml.data.base import Split
from dml.retrieval import metrics
from dml.retrieval.gallery import Gallery, Matches, Queries, at_once
from dml.retrieval.index import Search
from dml.retrieval.metrics import advantage, disagreement, margin, per_query, ranking, recall_at


def each(labels: Tensor) -> Queries:
    """Every item of a gallery without groups as a query to the others."""
    rows = torch.arange(len(labels))
    return Queries(labels, rows, rows)


def brute_force(
    similarity: np.ndarray, labels: np.ndarray, query_labels: np.ndarray, ignored: np.ndarray
) -> tuple[np.ndarray, list[list[int]]]:
    """(B, 3) R@1, R-precision and AP@R, and the rankings, by sorting in Python; among equals wrong items come first."""
    rows, orders = [], []
    for query, row in enumerate(similarity):
        items = [i for i in range(len(labels)) if not ignored[query, i]]
        items.sort(key=lambda i: (-row[i], labels[i] == query_labels[query]))
        right = [bool(labels[i] == query_labels[query]) for i in items]
        total = sum(right)
        precision = [sum(right[: i + 1]) / (i + 1) for i in range(total)]
        ap = sum(p for p, hit in zip(precision, right, strict=False) if hit) / total
        rows.append((right[0], sum(right[:total]) / total, ap))
        orders.append(items)
    return np.array(rows, dtype=float), orders


def check_all(tensor: Tensor, queries: Queries, gallery: Gallery, ignored: np.ndarray) -> None:
    """Compare every metric with brute force, on float64 embeddings of few digits."""
    expected, orders = brute_force(
        (tensor @ gallery.embeddings.T).numpy(), gallery.labels.numpy(), queries.labels.numpy(), ignored
    )
    found = np.stack([column.double().numpy() for column in per_query(tensor, queries, gallery)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert ((margin(tensor, queries, gallery) < 0).numpy() == expected[:, 0]).all()
    for k in (1, 3):
        hits = [any(gallery.labels[i] == queries.labels[q] for i in order[:k]) for q, order in enumerate(orders)]
        assert recall_at(tensor, queries, gallery, k).tolist() == hits
    shortest = min(map(len, orders))
    ranked = ranking(tensor, queries, gallery, shortest)
    for query, order in enumerate(orders):
        right = gallery.labels[ranked[query]] == queries.labels[query]
        assert right.tolist() == [bool(gallery.labels[i] == queries.labels[query]) for i in order[:shortest]]
        assert not set(ranked[query].tolist()) & set(np.flatnonzero(ignored[query]).tolist())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([2, 4, 1000]))
def test_metrics_equal_brute_force(seed: int, levels: int) -> None:
    """Few levels of similarity make many ties, which count against the defender."""
    draw = np.random.default_rng(seed)
    labels = torch.from_numpy(draw.permutation(np.repeat(np.arange(4), [2, 3, 5, 6])))
    tensor = torch.tensor(np.round(draw.normal(size=(16, 3)) * levels / 2) / levels)
    check_all(tensor, each(labels), Gallery(tensor, labels), np.eye(16, dtype=bool))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), apart=st.booleans())
def test_items_of_the_query_s_group_are_ignored_right_or_wrong(seed: int, apart: bool) -> None:
    draw = np.random.default_rng(seed)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    groups = torch.tensor([0, 0, 1, 2, 3, 3, 4, 1, 5, 5, 6, 6])  # group 1 spans two classes
    tensor = torch.tensor(np.round(draw.normal(size=(12, 3)) * 2) / 2)
    gallery = Gallery(tensor, labels, groups)
    if apart:  # three queries with groups and one without
        asked = Queries(labels[[0, 4, 8, 8]], torch.tensor([0, 3, 6, -1]), torch.full((4,), -1))
        embedded = torch.tensor(np.round(draw.normal(size=(4, 3)) * 2) / 2)
        ignored = (asked.groups[:, None] == groups).numpy()
        assert not ignored[3].any()
    else:
        asked, embedded = Queries(labels, groups, torch.arange(12)), tensor
        ignored = (groups[:, None] == groups).numpy()
    check_all(embedded, asked, gallery, ignored)
    matches = Matches.of(asked, gallery)
    assert (sum(mask.int() for mask in matches) == 1).all(), "an item is right, wrong or ignored"


def test_without_groups_only_the_query_itself_is_ignored() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    gallery = Gallery(torch.eye(4), labels)
    assert torch.equal(Matches.of(each(labels), gallery).ignored, torch.eye(4, dtype=torch.bool))
    outside = Queries(torch.tensor([0]), torch.tensor([-1]), torch.tensor([-1]))
    assert not Matches.of(outside, gallery).ignored.any()
    own_only = Queries(torch.tensor([0]), torch.tensor([-1]), torch.tensor([1]))
    assert Matches.of(own_only, gallery).ignored.tolist() == [[False, True, False, False]]


def collapsed(spread: float, count: int, classes: int = 10, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float32 unit vectors about ``spread`` apart, and random labels."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 128, generator=draw) / 128**0.5 / 2**0.5
    centre = F.normalize(torch.randn(128, generator=draw), dim=0)
    return F.normalize(centre + spread * noise, dim=1), torch.randint(classes, (count,), generator=draw)


def test_a_collapsed_embedding_earns_nothing_by_rounding() -> None:
    """2,000 unit vectors 0.0013 apart with random labels: in float32 their lengths decide which of them is nearest."""
    embeddings, labels = collapsed(0.0013, 2_000, classes=100)
    queries, gallery = each(labels), Gallery(embeddings, labels)
    assert torch.pdist(embeddings[:200].double()).median() == pytest.approx(0.0013, rel=0.1)
    matches = Matches.of(queries, gallery)
    rough = (advantage(embeddings, gallery, matches.wrong, matches.right) < 0).float().mean()
    exact = F.normalize(embeddings.double(), dim=1)
    nearest = (exact @ exact.T).fill_diagonal_(-torch.inf).argmax(1)
    truth = (labels[nearest] == labels).float().mean()
    found = per_query(embeddings, queries, gallery).r1.float().mean()
    assert rough > 0.15
    assert truth == pytest.approx(0.01, abs=0.01), "one of a hundred classes, guessed"
    assert found <= truth
    disagree = disagreement(embeddings, queries, gallery).float().mean()
    assert disagree.item() == pytest.approx((rough - found).item(), abs=0.005)
    assert recall_at(embeddings, queries, gallery, 1).float().mean() == found


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1_000),
    spread=st.sampled_from([0.0, 1e-6, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.1, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    unknown=st.sampled_from(["nothing", "query", "item"]),
)
def test_a_query_survives_by_its_margin_exactly_if_its_nearest_item_is_right(
    seed: int, spread: float, dtype: torch.dtype, unknown: str
) -> None:
    embeddings, labels = collapsed(spread, 60, seed=seed)
    labels[:20] = torch.arange(20) % 10  # at least two of each
    embeddings = embeddings.to(dtype)
    asked, stored = embeddings.clone(), embeddings.clone()
    if unknown == "query":
        asked[3] = torch.nan
    if unknown == "item":
        stored[3] = torch.nan
    queries, gallery = each(labels), Gallery(stored, labels)
    survives = margin(asked, queries, gallery) < 0
    assert torch.equal(survives, per_query(asked, queries, gallery).r1)
    assert torch.equal(survives, recall_at(asked, queries, gallery, 1))
    first = ranking(asked, queries, gallery, 1).squeeze(1)
    assert torch.equal(survives, labels[first] == labels) or unknown == "query"
    if unknown == "query":
        assert not survives[3]
    if unknown == "item":  # it may be nearest to all queries of other classes
        assert not survives[labels != labels[3]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_near_tie_is_no_lead(dtype: torch.dtype) -> None:
    """A right item has to lead by more than eight machine epsilons, of the format that the embeddings came in."""
    step = torch.finfo(dtype).eps / 2  # between numbers from 0.5 to 1
    gallery = Gallery(torch.eye(2, dtype=dtype), torch.tensor([0, 1]))
    query = Queries(torch.tensor([0]), torch.tensor([-1]), torch.tensor([-1]))
    half = torch.tensor(0.5, dtype=dtype).sqrt()
    for steps, survives in ((-30, False), (0, False), (14, False), (18, True), (40, True)):
        embedding = torch.stack([half, half - steps * step])[None]
        assert (margin(embedding, query, gallery) < 0).item() == survives
        assert per_query(embedding, query, gallery).r1.item() == survives
        assert (ranking(embedding, query, gallery, 1) == 0).item() == survives
        assert recall_at(embedding, query, gallery, 1).item() == survives


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(60, 8, generator=draw, dtype=torch.float64), dim=1)
    labels = torch.arange(60) % 12
    queries, gallery = each(labels), Gallery(embeddings, labels)

    def measured() -> tuple:
        return (
            per_query(embeddings, queries, gallery),
            recall_at(embeddings, queries, gallery, 4),
            ranking(embeddings, queries, gallery, 5),
            margin(embeddings, queries, gallery),
        )

    whole = measured()
    monkeypatch.setattr(metrics, "CHUNK", 7)
    torch.testing.assert_close(whole, measured(), atol=1e-14, rtol=0)


def test_a_query_outside_the_gallery_sees_all_of_it() -> None:
    gallery = Gallery(torch.eye(3), torch.tensor([0, 1, 1]))
    outside = Queries(torch.tensor([0]), torch.tensor([-1]), torch.tensor([-1]))
    assert ranking(torch.eye(3)[:1], outside, gallery, 1).item() == 0


def test_an_identical_image_elsewhere_is_found() -> None:
    """The query itself is left out by its row number: a duplicate at distance zero is a legitimate answer."""
    embeddings = torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0], [0, 1.0]])
    gallery = Gallery(embeddings, torch.tensor([0, 0, 1, 1]))
    assert ranking(embeddings[:1], each(gallery.labels).take(torch.tensor([0])), gallery, 1).item() == 1


def test_a_query_without_a_right_item_is_refused() -> None:
    embeddings, labels = torch.eye(3), torch.tensor([0, 1, 1])
    for measure in (per_query, margin, disagreement):
        with pytest.raises(ValueError, match="query 0 has no right item"):
            measure(embeddings, each(labels), Gallery(embeddings, labels))
    one_group = Gallery(embeddings, labels, torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="query 1 has no right item"):
        margin(
            embeddings[1:].repeat(2, 1),
            Queries(labels[[1, 2, 1]], torch.tensor([2, 1, 1]), torch.full((3,), -1)),
            one_group,
        )


def test_no_query_has_no_outcome_and_no_item_is_no_gallery() -> None:
    gallery, none = Gallery(torch.eye(4), torch.tensor([0, 0, 1, 1])), torch.empty(0, dtype=torch.long)
    for dtype in (torch.float32, torch.float64):
        found = per_query(torch.empty(0, 4, dtype=dtype), Queries(none, none, none), gallery)
        assert [(len(values), values.dtype) for values in found] == [(0, torch.bool), *2 * [(0, torch.float64)]]
    assert not len(recall_at(torch.empty(0, 4), Queries(none, none, none), gallery, 1))
    with pytest.raises(ValueError, match="the gallery holds no item"):
        Gallery(torch.empty(0, 4), none)


def test_fewer_queries_are_compared_at_a_time_with_a_large_gallery() -> None:
    """So that the table of queries by items does not grow."""
    sizes = {items: at_once(Gallery(torch.empty(items, 0), torch.empty(items)), 256) for items in (10, 60_000, 10**8)}
    assert sizes == {10: 256, 60_000: 69, 10**8: 1}


class Means(nn.Module):
    """Images -> their mean colour, of unit length; the model has no parameters."""

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(images.mean((2, 3)), dim=1)


def test_each_image_of_a_split_is_a_query_to_the_others(toy_split: Split) -> None:
    search = Search.over(Means(), toy_split)
    assert len(search) == 36
    assert not search.apart
    rows = np.array([7, 3])
    queries, images = search.queries(rows), search.images(rows)
    assert queries.own.tolist() == queries.groups.tolist() == [7, 3]
    torch.testing.assert_close(images[1], torch.from_numpy(toy_split.images[3]).permute(2, 0, 1) / 255)
    assert torch.equal(search.margin(images, queries) < 0, search.natural().r1[rows])


def test_queries_apart_search_the_whole_gallery(toy_split: Split) -> None:
    mask = np.arange(36) % 6 == 0
    gallery, asked = (
        Split(toy_split.images[rows], toy_split.labels[rows], toy_split.class_names) for rows in (~mask, mask)
    )
    search = Search.over(Means(), gallery, asked)
    assert len(search) == 6
    assert search.apart
    assert len(search.gallery) == 30
    queries = search.queries(np.array([5, 0]))
    assert queries.own.tolist() == queries.groups.tolist() == [-1, -1]
    assert queries.labels.tolist() == [5, 0]
    embedded = Means()(torch.from_numpy(asked.images).permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(search.query_embeddings, embedded)
    expected = toy_split.labels[~mask][(embedded @ search.gallery.embeddings.T).argmax(1).numpy()] == np.arange(6)
    assert search.natural().r1.tolist() == expected.tolist()


def test_groups_of_queries_and_gallery_have_one_numbering(toy_split: Split) -> None:
    def part(rows: np.ndarray, groups: np.ndarray | None) -> Split:
        return Split(toy_split.images[rows], toy_split.labels[rows], toy_split.class_names, groups)

    rows, groups = np.arange(0, 36, 2), np.arange(0, 36, 2) // 4
    both = Search.over(Means(), part(rows, groups), part(rows[:3], groups[:3]))
    assert both.queries(np.array([2])).groups.tolist() == [groups[2]]
    assert Search.over(Means(), part(rows, groups)).queries(np.array([2])).groups.tolist() == [groups[2]]
    assert Search.over(Means(), part(rows, groups), part(rows, None)).queries(np.array([2])).groups.tolist() == [-1]
    with pytest.raises(ValueError, match="give the gallery's images groups"):
        Search.over(Means(), part(rows, None), part(rows, groups))
