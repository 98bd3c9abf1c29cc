"""Miners against their definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.common.table import find
from dml.losses.miners import MINERS
from dml.losses.miners.base import pairwise_distance
from dml.losses.miners.distance_weighted import distance_weighted
from dml.losses.miners.semi_hard import semi_hard
from dml.losses.miners.soft_hard import soft_hard


def batch(seed: int, labels: list[int], dimension: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    embeddings = torch.nn.functional.normalize(torch.randn(len(labels), dimension, generator=draw), dim=1)
    return embeddings, torch.tensor(labels)


@pytest.mark.parametrize("name", sorted(MINERS))
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), labels=st.lists(st.integers(0, 4), min_size=1, max_size=14))
def test_roles_are_what_they_say(name: str, seed: int, labels: list[int]) -> None:
    embeddings, tensor = batch(seed, labels)
    tuples = find(MINERS, name, "miner")(embeddings, tensor, torch.Generator().manual_seed(seed))
    usable = [i for i, label in enumerate(labels) if 1 < labels.count(label) < len(labels)]
    assert tuples.anchor.tolist() == usable
    assert (tuples.anchor != tuples.positive).all(), "an image is never its own positive"
    assert torch.equal(tensor[tuples.anchor], tensor[tuples.positive])
    assert (tensor[tuples.anchor] != tensor[tuples.negative]).all()


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 3), min_size=2, max_size=12), seed=st.integers(0, 1000))
def test_soft_hard_takes_hard_ones_where_there_are_any(labels: list[int], seed: int) -> None:
    embeddings = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    apart = pairwise_distance(embeddings := torch.nn.functional.normalize(embeddings, dim=1)).tolist()
    tuples = soft_hard(embeddings, torch.tensor(labels), torch.Generator().manual_seed(seed))
    for anchor, positive, negative in zip(*(rows.tolist() for rows in tuples), strict=True):
        near = [i for i in range(len(labels)) if labels[i] == labels[anchor] and i != anchor]
        far = [i for i in range(len(labels)) if labels[i] != labels[anchor]]
        hard_near = [i for i in near if apart[anchor][i] > min(apart[anchor][j] for j in far)]
        hard_far = [i for i in far if apart[anchor][i] < max(apart[anchor][j] for j in near)]
        assert positive in (hard_near or near)
        assert negative in (hard_far or far)


def test_semi_hard_takes_the_nearest_negative_beyond_the_positive() -> None:
    embeddings, labels = batch(1, [0, 0, 1, 1, 2, 2, 3, 3])
    tuples = semi_hard(embeddings, labels, torch.Generator().manual_seed(0))
    distance = pairwise_distance(embeddings)
    for a, p, n in zip(*(role.tolist() for role in tuples), strict=True):
        negatives = [i for i in range(8) if labels[i] != labels[a]]
        beyond = [i for i in negatives if distance[a, i] > distance[a, p]]
        expected = min(beyond, key=lambda i: distance[a, i]) if beyond else max(negatives, key=lambda i: distance[a, i])
        assert n == expected


def test_distance_weighted_draws_with_the_inverse_density() -> None:
    embeddings, labels = batch(5, [0, 0, 1, 1, 2, 2], dimension=4)
    distance = pairwise_distance(embeddings).double().clamp(0.5, 1.999)
    negatives = [i for i in range(6) if labels[i] != 0 and distance[0, i] < 1.4]
    density = [float(distance[0, i] ** 2 * (1 - distance[0, i] ** 2 / 4) ** 0.5) for i in negatives]
    expected = torch.tensor([1 / value for value in density])
    draw = torch.Generator().manual_seed(0)
    drawn = [int(distance_weighted(embeddings, labels, draw).negative[0]) for _ in range(4000)]
    shares = torch.tensor([drawn.count(i) / len(drawn) for i in negatives])
    torch.testing.assert_close(shares, expected / expected.sum(), atol=0.03, rtol=0)
    assert sum(drawn.count(i) for i in negatives) == len(drawn)
