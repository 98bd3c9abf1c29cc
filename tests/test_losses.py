"""Losses by hand from angles, and against pytorch-metric-learning."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import losses as oracle
from pytorch_metric_learning.reducers import DoNothingReducer
from torch import Tensor

from dml.losses import Contrastive, Triplet, distance


def at_angle(degrees: float) -> Tensor:
    """A unit vector in the plane, (1, 2)."""
    angle = math.radians(degrees)
    return torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)


def chord(degrees: float) -> float:
    """The distance of two unit vectors so far apart."""
    return 2 * math.sin(math.radians(degrees) / 2)


@given(st.floats(0.1, 179), st.floats(0.1, 179), st.floats(0, 1))
def test_triplet_from_angles(to_positive: float, to_negative: float, margin: float) -> None:
    value = Triplet(margin)(at_angle(0), at_angle(to_positive), at_angle(-to_negative))
    assert value.item() == pytest.approx(max(0, chord(to_positive) - chord(to_negative) + margin), abs=1e-9)


@given(st.floats(0.1, 179), st.floats(0.1, 179), st.floats(0, 1), st.floats(0, 2))
def test_contrastive_from_angles(to_positive: float, to_negative: float, near: float, far: float) -> None:
    value = Contrastive(near, far)(at_angle(0), at_angle(to_positive), at_angle(-to_negative))
    expected = max(0, chord(to_positive) - near) + max(0, far - chord(to_negative))
    assert value.item() == pytest.approx(expected, abs=1e-9)


@pytest.fixture
def roles() -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    embeddings = torch.randn(3, 50, 16, generator=draw, dtype=torch.float64)
    return tuple(torch.nn.functional.normalize(embeddings, dim=-1))


def test_triplet_equals_pytorch_metric_learning(roles: tuple[Tensor, Tensor, Tensor]) -> None:
    rows = torch.arange(50)
    reference = oracle.TripletMarginLoss(margin=0.2, reducer=DoNothingReducer())
    # labels do not matter where the indices of the triplets are given
    given_triplets = (rows, rows + 50, rows + 100)
    expected = reference(torch.cat(roles), torch.zeros(150), given_triplets)["loss"]["losses"]
    torch.testing.assert_close(Triplet(0.2)(*roles), expected, atol=1e-6, rtol=0)


def test_contrastive_equals_pytorch_metric_learning(roles: tuple[Tensor, Tensor, Tensor]) -> None:
    rows = torch.arange(50)
    reference = oracle.ContrastiveLoss(pos_margin=0.1, neg_margin=1.0, reducer=DoNothingReducer())
    pairs = (rows, rows + 50, rows, rows + 100)
    parts = reference(torch.cat(roles), torch.zeros(150), pairs)
    expected = parts["pos_loss"]["losses"] + parts["neg_loss"]["losses"]
    torch.testing.assert_close(Contrastive(0.1, 1.0)(*roles), expected, atol=1e-6, rtol=0)


def test_gradient_is_zero_where_embeddings_coincide() -> None:
    first = torch.ones(1, 4, requires_grad=True)
    distance(first, torch.ones(1, 4)).sum().backward()
    assert torch.equal(first.grad, torch.zeros(1, 4))
