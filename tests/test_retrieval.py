"""Retrieval metrics against brute force, ties and self-matches included."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.retrieval import index as retrieval
from dml.retrieval.index import Gallery, Queries, at_once, margin, per_query, ranking, recall_at


def brute_force(similarity: np.ndarray, labels: np.ndarray, query_labels: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(B, 3): R@1, R-precision and AP@R by sorting in Python; among equals, wrong items come first."""
    rows = []
    for query, row in enumerate(similarity):
        items = [i for i in range(len(labels)) if i != own[query]]
        items.sort(key=lambda i: (-row[i], labels[i] == query_labels[query]))
        right = [bool(labels[i] == query_labels[query]) for i in items]
        total = sum(right)
        precision = [sum(right[: i + 1]) / (i + 1) for i in range(total)]
        ap = sum(p for p, hit in zip(precision, right, strict=False) if hit) / total
        rows.append((right[0], sum(right[:total]) / total, ap))
    return np.array(rows, dtype=float)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([2, 4, 1000]))
def test_metrics_equal_brute_force(seed: int, levels: int) -> None:
    """Few levels of similarity make many ties, which count against the defender."""
    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.repeat(np.arange(4), [2, 3, 5, 6]))
    embeddings = np.round(draw.normal(size=(16, 3)) * levels / 2) / levels
    tensor, tensor_labels = torch.tensor(embeddings), torch.from_numpy(labels)
    queries = Queries(tensor_labels, torch.arange(16))
    outcome = per_query(tensor, queries, Gallery(tensor, tensor_labels))
    similarity = (tensor @ tensor.T).numpy()
    expected = brute_force(similarity, labels, labels, np.arange(16))
    found = np.stack([column.double().numpy() for column in outcome], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    hits = margin(tensor, queries, Gallery(tensor, tensor_labels)) < 0
    np.testing.assert_array_equal(hits.numpy(), expected[:, 0].astype(bool))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(60, 8, generator=draw, dtype=torch.float64), dim=1)
    labels = torch.arange(60) % 12
    queries, gallery = Queries(labels, torch.arange(60)), Gallery(embeddings, labels)
    whole = per_query(embeddings, queries, gallery), recall_at(embeddings, queries, gallery, 4)
    monkeypatch.setattr(retrieval, "CHUNK", 7)
    parts = per_query(embeddings, queries, gallery), recall_at(embeddings, queries, gallery, 4)
    torch.testing.assert_close(whole, parts, atol=0, rtol=0)


def test_a_query_outside_the_gallery_sees_all_of_it() -> None:
    gallery = Gallery(torch.eye(3), torch.tensor([0, 1, 1]))
    outside = Queries(torch.tensor([0]), torch.tensor([-1]))
    assert ranking(torch.eye(3)[:1], outside, gallery, 1).item() == 0


def test_an_identical_picture_elsewhere_is_found() -> None:
    """Self-matches are excluded by row number: a duplicate at distance zero is a legitimate answer."""
    embeddings = torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0], [0, 1.0]])
    gallery = Gallery(embeddings, torch.tensor([0, 0, 1, 1]))
    assert ranking(embeddings[:1], Queries(torch.tensor([0]), torch.tensor([0])), gallery, 1).item() == 1


def test_a_query_without_a_right_item_is_refused() -> None:
    embeddings = torch.eye(3)
    queries = Queries(torch.tensor([0, 1, 1]), torch.arange(3))
    with pytest.raises(ValueError, match="query 0 has no right item"):
        per_query(embeddings, queries, Gallery(embeddings, queries.labels))


def test_fewer_queries_are_compared_at_a_time_with_a_large_gallery() -> None:
    """So that the table of queries by items stays as large as it is."""
    sizes = {items: at_once(Gallery(torch.empty(items, 0), torch.empty(items)), 256) for items in (10, 60_000, 10**8)}
    assert sizes == {10: 256, 60_000: 69, 10**8: 1}
