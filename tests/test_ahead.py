"""Ranking in float32 and float64 gives what float64 alone gives, however close the items lie."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.retrieval import ahead, metrics
from dml.retrieval.gallery import Gallery, Queries
from dml.retrieval.metrics import Outcome, per_query


def in_float64(embeddings: torch.Tensor, queries: Queries, gallery: Gallery) -> Outcome:
    """The outcome when every pair is compared in float64."""
    return metrics._joined(
        [metrics._outcome(*metrics._exact(s)) for s in metrics._scores(embeddings, queries, gallery)]
    )


def close_items(seed: int, spread: float, groups: int, apart: bool) -> tuple[torch.Tensor, Queries, Gallery]:
    """Items so close that float32 errs by their distances where ``spread`` is small, some of them twice."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (60,), generator=draw)
    labels[:8] = torch.arange(4).repeat(2)
    points = torch.randn(16, generator=draw) + spread * torch.randn(60, 16, generator=draw)
    points[40:] = points[20:40]  # of another class, mostly
    gallery = Gallery(F.normalize(points, dim=1), labels, torch.randint(groups, (60,), generator=draw))
    gallery.groups[:8] = groups + torch.arange(8)  # so that every class has items that are not ignored
    rows = torch.arange(60)
    if not apart:
        return gallery.embeddings, Queries(labels, gallery.groups, rows), gallery
    own = torch.full_like(rows, -1)
    shifted = F.normalize(points + spread * torch.randn(60, 16, generator=draw), dim=1)
    return shifted, Queries(labels, own.where(rows % 2 == 0, gallery.groups), own), gallery


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([1e-8, 1e-6, 1e-4, 3e-3, 1e-2, 1.0]),
    groups=st.sampled_from([5, 1000]),
    apart=st.booleans(),
    form=st.sampled_from(["float32", "float64", "bfloat16", "lengths that err"]),
)
def test_outcomes_are_those_of_float64(seed: int, spread: float, groups: int, apart: bool, form: str) -> None:
    embeddings, queries, gallery = close_items(seed, spread, groups, apart)
    if form == "float64":
        gallery = Gallery(F.normalize(gallery.embeddings.double(), dim=1), gallery.labels, gallery.groups)
        embeddings = F.normalize(embeddings.double(), dim=1)
    elif form == "bfloat16":
        gallery = Gallery(gallery.embeddings.bfloat16(), gallery.labels, gallery.groups)
        embeddings = embeddings.bfloat16()
    elif form == "lengths that err":
        gallery = Gallery(gallery.embeddings * (1 + 1e-3 * torch.rand(60, 1)), gallery.labels, gallery.groups)
        embeddings = embeddings * (1 + 1e-3 * torch.rand(60, 1))
    for found, expected in zip(
        per_query(embeddings, queries, gallery), in_float64(embeddings, queries, gallery), strict=True
    ):
        assert torch.equal(found, expected)


def test_doubt_is_resolved_and_what_is_left_open_is_ranked_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, left_open = [], []
    lead, count = ahead._lead, ahead.count

    def seen(embeddings: torch.Tensor, query: torch.Tensor, *rest: object) -> torch.Tensor:
        compared.append(len(query))
        return lead(embeddings, query, *rest)

    def counted(embeddings: torch.Tensor, queries: Queries, gallery: Gallery, tolerance: float) -> ahead.Ahead:
        found = count(embeddings, queries, gallery, tolerance)
        left_open.append(int(found.open.sum()))
        return found

    monkeypatch.setattr(ahead, "_lead", seen)
    monkeypatch.setattr(metrics, "count", counted)
    per_query(*close_items(0, 1.0, 1000, False))  # twins of other classes lie as close as the item itself
    assert max(compared) > 0
    assert left_open == [0]
    per_query(*close_items(0, 1e-6, 1000, False))  # a collapsed embedding is left to float64 as a whole
    assert left_open == [0, 60]


def test_shorter_formats_of_multiplication_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    monkeypatch.setattr(metrics, "count", None)
    embeddings, queries, gallery = close_items(0, 1e-2, 1000, False)
    assert torch.equal(per_query(embeddings, queries, gallery).r1, in_float64(embeddings, queries, gallery).r1)


def test_flags_that_cannot_be_read_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch refuses to tell the precision of products once somebody has set it by its newer flags."""

    def refuses() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    monkeypatch.setattr(metrics, "count", None)
    embeddings, queries, gallery = close_items(0, 1e-2, 1000, False)
    assert torch.equal(per_query(embeddings, queries, gallery).r1, in_float64(embeddings, queries, gallery).r1)


def test_autocast_does_not_reach_the_ranking() -> None:
    embeddings, queries, gallery = close_items(0, 1e-2, 1000, False)
    expected = per_query(embeddings, queries, gallery)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = per_query(embeddings, queries, gallery)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
