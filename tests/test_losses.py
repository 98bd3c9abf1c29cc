"""Losses by hand from angles, and against pytorch-metric-learning."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import losses as oracle
from pytorch_metric_learning.reducers import DoNothingReducer, MeanReducer
from torch import Tensor
from torch.nn.functional import normalize

from dml.common.randomness import seeded_global
from dml.common.table import find
from dml.defenses.hardness import Hardness
from dml.losses import LOSSES
from dml.losses.base import TupleLoss, distance, pairs
from dml.losses.contrastive import Contrastive
from dml.losses.margin import Margin
from dml.losses.miners import MINERS
from dml.losses.pml import CHOICES, PML
from dml.losses.triplet import Triplet

REFUSED = {"GenericPairLoss", "ManifoldLoss", "VICRegLoss"}  # an abstract class, and two that take no labels
NEEDED = {"RankedListLoss": {"margin": 0.4, "Tn": 5}}
USABLE = sorted(set(CHOICES) - REFUSED)
COMPARING = {
    "AngularLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "DynamicSoftMarginLoss",
    "GeneralizedLiftedStructureLoss",
    "IntraPairVarianceLoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NTXentLoss",
    "SignalToNoiseRatioContrastiveLoss",
    "SupConLoss",
    "TripletMarginLoss",
    "TupletMarginLoss",
}
BATCH_WIDE = {"IntraPairVarianceLoss", "DynamicSoftMarginLoss"}  # a query's value depends on the other queries
pytestmark = pytest.mark.filterwarnings("ignore:::pytorch_metric_learning")
LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
OWN = torch.arange(9)


def triplet(margin: float = 0.2) -> Triplet:
    return Triplet(2, 2, miner="random", margin=margin)


def at_angle(degrees: float) -> Tensor:
    """A unit vector in the plane, (1, 2)."""
    angle = math.radians(degrees)
    return torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)


def chord(degrees: float) -> float:
    """The distance between two unit vectors with this angle between them."""
    return 2 * math.sin(math.radians(degrees) / 2)


def unit(count: int, seed: int = 0, dimension: int = 8) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, dimension, generator=draw, dtype=torch.float64), dim=1)


def pml(name: str, **settings: Any) -> PML:
    with seeded_global(0, "loss"):
        return PML(3, 8, name=name, **NEEDED.get(name, {}), **settings).double()


@given(st.floats(0.1, 179), st.floats(0.1, 179), st.floats(0, 1))
def test_triplet_from_angles(to_positive: float, to_negative: float, margin: float) -> None:
    value = triplet(margin)(at_angle(0), at_angle(to_positive), at_angle(-to_negative))
    assert value.item() == pytest.approx(max(0, chord(to_positive) - chord(to_negative) + margin), abs=1e-9)


@given(st.floats(0.1, 179), st.floats(0.1, 179), st.floats(0, 1), st.floats(0, 2))
def test_contrastive_from_angles(to_positive: float, to_negative: float, near: float, far: float) -> None:
    loss = Contrastive(2, 2, miner="random", positive_margin=near, negative_margin=far)
    value = loss(at_angle(0), at_angle(to_positive), at_angle(-to_negative))
    expected = max(0, chord(to_positive) - near) + max(0, far - chord(to_negative))
    assert value.item() == pytest.approx(expected, abs=1e-9)


@pytest.fixture
def roles() -> tuple[Tensor, Tensor, Tensor]:
    return tuple(unit(50, seed, 16) for seed in range(3))


def test_triplet_equals_pytorch_metric_learning(roles: tuple[Tensor, Tensor, Tensor]) -> None:
    rows = torch.arange(50)
    reference = oracle.TripletMarginLoss(margin=0.2, reducer=DoNothingReducer())
    # labels do not matter where the indices of the triplets are given
    given_triplets = (rows, rows + 50, rows + 100)
    expected = reference(torch.cat(roles), torch.zeros(150), given_triplets)["loss"]["losses"]
    torch.testing.assert_close(triplet()(*roles), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("far", [1.4, 0.01])
def test_averages_over_what_is_not_0_equal_pytorch_metric_learning(
    roles: tuple[Tensor, Tensor, Tensor], far: float
) -> None:
    """Its losses with their default reducer; at 0.01 no negative costs anything."""
    rows = torch.arange(50)
    triplets, labels, stacked = (rows, rows + 50, rows + 100), torch.zeros(150), torch.cat(roles)
    loss = Triplet(2, 16, miner="random", average="nonzero", margin=-0.1)
    values = loss(*roles)
    assert 0 < values.count_nonzero() < 50
    torch.testing.assert_close(values.mean(), oracle.TripletMarginLoss(margin=-0.1)(stacked, labels, triplets))
    loss = Contrastive(2, 16, miner="random", average="nonzero", positive_margin=1.3, negative_margin=far)
    expected = oracle.ContrastiveLoss(pos_margin=1.3, neg_margin=far)(stacked, labels, triplets)
    torch.testing.assert_close(loss(*roles).mean(), expected)
    opposite = roles[0], roles[1], -roles[0]  # so that no negative of the margin loss costs anything
    expected = oracle.MarginLoss(margin=0.2, beta=1.0)(torch.cat(opposite), labels, triplets)
    loss = Margin(2, 16, miner="random", average="nonzero", beta=1.0)
    torch.testing.assert_close(loss(*opposite).mean(), expected, check_dtype=False)


def test_contrastive_equals_pytorch_metric_learning(roles: tuple[Tensor, Tensor, Tensor]) -> None:
    rows = torch.arange(50)
    reference = oracle.ContrastiveLoss(pos_margin=0.1, neg_margin=1.0, reducer=DoNothingReducer())
    parts = reference(torch.cat(roles), torch.zeros(150), (rows, rows + 50, rows, rows + 100))
    expected = parts["pos_loss"]["losses"] + parts["neg_loss"]["losses"]
    loss = Contrastive(2, 16, miner="random", positive_margin=0.1)
    torch.testing.assert_close(loss(*roles), expected, atol=1e-6, rtol=0)


def test_gradient_is_zero_where_embeddings_coincide() -> None:
    first = torch.ones(1, 4, requires_grad=True)
    distance(first, torch.ones(1, 4)).sum().backward()
    assert torch.equal(first.grad, torch.zeros(1, 4))


def test_a_clean_batch_costs_its_mined_tuples() -> None:
    loss, embeddings = triplet(), unit(9)
    tuples = loss.mine(embeddings, LABELS, torch.Generator().manual_seed(4))
    found = loss.natural(embeddings, LABELS, torch.Generator().manual_seed(4))
    assert torch.equal(found, loss(*tuples.pick(embeddings)))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_of_the_table_is_built_with_classes_and_dimension(name: str) -> None:
    kind = find(LOSSES, name, "loss")
    settings = {"miner": "random"} if issubclass(kind, TupleLoss) else {"name": "NTXentLoss"} if kind is PML else {}
    values = kind(3, 8, **settings).natural(unit(9), LABELS, torch.Generator())
    assert values.shape == (9,)
    with pytest.raises(ValueError, match="classes is 1; it must be at least 2"):
        kind(1, 8, **settings)


def test_a_batch_without_tuples_is_refused() -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    for labels in ([0, 1, 2, 3], [0, 0, 0, 0]):
        with pytest.raises(ValueError, match="the batch has no tuple; it needs two images of a class"):
            Triplet(4, 8, miner="random").natural(embeddings, torch.tensor(labels), torch.Generator())


def test_embeddings_of_another_length_are_refused() -> None:
    loss, labels = Triplet(4, 8, miner="random"), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"lengths of 5\.7 to 5\.7; .*torch\.nn\.functional\.normalize"):
        loss.mine(torch.full((4, 8), 2.0), labels, torch.Generator())


def test_an_unknown_miner() -> None:
    with pytest.raises(ValueError, match="miner 'semihard' is unknown; did you mean 'semi_hard'"):
        Triplet(2, 2, miner="semihard")


def test_a_wrong_line_among_miners_is_told_before_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MINERS, "hardest", "dml.losses.miners.hardest:hardest")
    with pytest.raises(ModuleNotFoundError, match=r"dml\.losses\.miners\.hardest"):
        Triplet(2, 2, miner="hardest")
    with pytest.raises(ModuleNotFoundError, match=r"dml\.losses\.miners\.hardest"):
        Hardness(destination="hardest")


def test_pairs_leave_out_the_query_itself() -> None:
    same, other = pairs(torch.tensor([0, 1]), torch.tensor([0, 0, 1]), torch.tensor([1, -1]))
    assert same.tolist() == [[True, False, False], [False, False, True]]
    assert other.tolist() == [[False, False, True], [True, True, False]]


@pytest.mark.parametrize("name", USABLE)
def test_every_loss_of_pytorch_metric_learning_gives_each_query_a_value(name: str) -> None:
    """With clean and with perturbed queries, twice in a row, without the global generator."""
    loss, clean = pml(name), unit(9).requires_grad_(True)
    assert loss.compares == (name in COMPARING)
    state = torch.get_rng_state()
    for queries in (clean, normalize(clean + 0.1 * unit(9, 1), dim=1)):
        values = loss(queries, LABELS, clean, LABELS, OWN)
        assert values.shape == (9,)
        assert values.isfinite().all()
        values.mean().backward()
        assert clean.grad.isfinite().all()
        assert clean.grad.abs().sum() > 0
        clean.grad = None
        assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "name",
    [
        "ContrastiveLoss",
        "TripletMarginLoss",
        "MultiSimilarityLoss",
        "NTXentLoss",
        "SupConLoss",
        "CircleLoss",
        "AngularLoss",
        "LiftedStructureLoss",
        "NCALoss",
        "FastAPLoss",
        "ArcFaceLoss",
        "ProxyNCALoss",
    ],
)
def test_the_mean_over_queries_is_the_library_with_its_mean_reducer(name: str) -> None:
    embeddings = unit(9)
    with seeded_global(0, "loss"):
        sizes = {"num_classes": 3, "embedding_size": 8} if "Face" in name or "Proxy" in name else {}
        reference = getattr(oracle, name)(**sizes, reducer=MeanReducer()).double()
    loss = pml(name)
    torch.testing.assert_close(loss(embeddings, LABELS, embeddings, LABELS, OWN).mean(), reference(embeddings, LABELS))


@pytest.mark.parametrize("name", ["HistogramLoss", "PNPLoss", "P2SGradLoss", "ProxyAnchorLoss"])
def test_what_a_loss_computes_over_the_batch_each_query_gets(name: str) -> None:
    embeddings = unit(9)
    sizes = {"P2SGradLoss": {"descriptors_dim": 8, "num_classes": 3}}
    sizes["ProxyAnchorLoss"] = {"num_classes": 3, "embedding_size": 8}
    with seeded_global(0, "loss"):
        reference = getattr(oracle, name)(**sizes.get(name, {})).double()
    values = pml(name)(embeddings, LABELS, embeddings, LABELS, OWN)
    torch.testing.assert_close(values, reference(embeddings, LABELS).expand(9))


@pytest.mark.parametrize("name", sorted(COMPARING - BATCH_WIDE))
def test_a_query_never_meets_its_own_image(name: str) -> None:
    """Wherever its own clean image lies, the value of a query is the same; to the other queries it is a reference."""
    loss, queries, clean = pml(name).eval(), unit(9, 1), unit(9)
    before = loss(queries, LABELS, clean, LABELS, OWN)
    for place in (queries[4] + 0.01, -queries[3]):
        moved = clean.clone()
        moved[4] = normalize(place, dim=0)
        after = loss(queries, LABELS, moved, LABELS, OWN)
        torch.testing.assert_close(after[4], before[4])
    assert after[3] != before[3], "it is a positive of query 3"
    free = loss(queries, LABELS, moved, LABELS, torch.full_like(OWN, -1))
    assert free[4] != before[4], "without an own row, it is a positive like any other"


@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "TripletMarginLoss", "NCALoss", "ArcFaceLoss"])
def test_queries_are_independent(name: str) -> None:
    loss, queries, clean = pml(name), unit(9, 1), unit(9)
    changed = queries.clone()
    changed[2] = unit(1, 5)
    differs = ~torch.isclose(*(loss(q, LABELS, clean, LABELS, OWN) for q in (queries, changed)))
    assert differs.tolist() == [row == 2 for row in range(9)]


def test_queries_may_be_fewer_than_the_reference() -> None:
    loss, queries, clean = pml("MultiSimilarityLoss"), unit(9, 1), unit(9)
    whole, rows = loss(queries, LABELS, clean, LABELS, OWN), torch.tensor([1, 5, 6])
    torch.testing.assert_close(loss(queries[rows], LABELS[rows], clean, LABELS, rows), whole[rows])


def test_state_outside_parameters_is_kept() -> None:
    """DynamicSoftMarginLoss keeps a running histogram in a plain attribute: it must survive a checkpoint."""
    first, second, fresh = (pml("DynamicSoftMarginLoss") for _ in range(3))
    first(unit(9), LABELS, unit(9), LABELS, OWN)
    second.load_state_dict(first.state_dict())
    later = [loss(unit(9, 1), LABELS, unit(9), LABELS, OWN) for loss in (first, second, fresh)]
    assert torch.equal(later[0], later[1])
    assert not torch.equal(later[0], later[2])


def test_in_evaluation_mode_a_loss_stays_as_it_is() -> None:
    loss = pml("DynamicSoftMarginLoss")
    loss(unit(9), LABELS, unit(9), LABELS, OWN)
    before = {name: value.clone() for name, value in loss.get_extra_state().items()}
    loss.eval()(unit(9, 1), LABELS, unit(9), LABELS, OWN)
    assert all(torch.equal(value, before[name]) for name, value in loss.get_extra_state().items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "MultiSimilarity"}, "'MultiSimilarity' is unknown; did you mean 'MultiSimilarityLoss'"),
        ({"name": "NTXentLoss", "temprature": 1}, "NTXentLoss cannot be used with {'temprature': 1}: .*temprature"),
        ({"name": "RankedListLoss"}, "RankedListLoss cannot be used with {}: .*margin"),
        ({"name": "NTXentLoss", "reducer": "mean"}, "leave it out, every query needs a value"),
        ({"name": "VICRegLoss"}, "VICRegLoss cannot be used with {}: .*not supported"),
    ],
)
def test_settings_that_pytorch_metric_learning_refuses(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PML(3, 8, **settings)
