"""Margin, multi-similarity and proxy-anchor losses: by hand, against pytorch-metric-learning, and in training."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import losses as oracle
from pytorch_metric_learning.reducers import DoNothingReducer, MeanReducer
from torch import Tensor, nn
from torch.nn.functional import normalize

from dml.common.randomness import seeded_global
from dml.config.build import training
from dml.data.base import Split
from dml.defenses.base import Defense
from dml.defenses.fare import FARE
from dml.defenses.robust import Robust
from dml.defenses.single_step import SingleStep
from dml.defenses.standard import Standard
from dml.defenses.trades import Trades
from dml.losses.base import BatchLoss, Loss
from dml.losses.margin import Margin
from dml.losses.multi_similarity import MultiSimilarity
from dml.losses.pml import PML
from dml.losses.proxy_anchor import ProxyAnchor
from dml.models.embedder import Embedder, build
from dml.training.loop import fit
from dml.training.schedule import Schedule

EPS = 0.1
LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
OWN = torch.arange(9)
ONE_STEP = Schedule(1, 1, 6, 3, optimizer="adam", rate="constant", learning_rate=0.01, weight_decay=0.0, averaging=0.0)


@pytest.mark.parametrize("name", ["ContrastiveLoss", "IntraPairVarianceLoss", "TripletMarginLoss", "CircleLoss"])
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]])
def test_a_batch_without_pairs_costs_something_finite(name: str, labels: list[int]) -> None:
    embeddings = normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1).requires_grad_()
    values = PML(4, 8, name=name).natural(embeddings, torch.tensor(labels), torch.Generator())
    assert values.shape == (4,)
    assert values.isfinite().all()


def at_angle(*degrees: float) -> Tensor:
    """Unit vectors in the plane, (T, 2)."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


def chord(degrees: float) -> float:
    """The distance between two unit vectors with this angle between them."""
    return 2 * math.sin(math.radians(degrees) / 2)


def unit(count: int, seed: int = 0, dimension: int = 8) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, dimension, generator=draw, dtype=torch.float64), dim=1)


def margin(**settings: float) -> Margin:
    return Margin(6, 8, miner="distance_weighted", **settings)


def multi_similarity(**settings: float) -> MultiSimilarity:
    return MultiSimilarity(6, 8, **settings)


def proxy_anchor(classes: int = 6, seed: int = 0, **settings: float) -> ProxyAnchor:
    with seeded_global(seed, "loss"):
        return ProxyAnchor(classes, 8, **settings)


class Linear(nn.Module):
    """A linear embedder that remembers every batch it was given in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 4 * 4, 8)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.append(images.detach().clone())
        return normalize(self.linear(images.flatten(1)), dim=1)


@pytest.fixture
def model() -> Linear:
    torch.manual_seed(0)
    return Linear().train()


@pytest.fixture
def images() -> Tensor:
    return 0.2 + 0.6 * torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def train(split: Split, loss: Loss, defense: Defense, schedule: Schedule) -> Embedder:
    model = build("conv4", 8, seed=0, statistics=split.statistics())
    fit(
        model,
        split,
        loss,
        defense,
        schedule,
        seed=0,
        validate=lambda model: {"natural": 0.0, "adversarial": 0.0},
        report=lambda line: None,
        timing=lambda line: None,
    )
    return model


@given(st.floats(0.1, 179), st.floats(0.1, 179), st.floats(0, 1), st.floats(0, 2))
def test_margin_from_angles(to_positive: float, to_negative: float, margin: float, beta: float) -> None:
    loss = Margin(2, 2, miner="random", margin=margin, beta=beta)
    value = loss(at_angle(0), at_angle(to_positive), at_angle(-to_negative))
    expected = max(0, margin + chord(to_positive) - beta) + max(0, margin - chord(to_negative) + beta)
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_beta_gathers_the_pairs_that_cost_something() -> None:
    """At the paper's settings positives cost beyond 1.0 (60 degrees), negatives within 1.4 (88.85 degrees)."""
    loss, anchor = margin(), at_angle(0).expand(4, 2)
    values = loss(anchor, at_angle(61, 59, 61, 59), at_angle(-90, -88, -88, -90))
    assert (values > 0).tolist() == [True, True, True, False]
    found = [torch.autograd.grad(value, loss.beta, retain_graph=True)[0].item() for value in values]
    assert found == [-1, 1, 0, 0]


@pytest.mark.parametrize("reducer", ["mean", "default"])
def test_margin_equals_pytorch_metric_learning(reducer: str) -> None:
    """Values, and the gradients of beta and embeddings; the library's own mean leaves out pairs without a cost."""
    leaf, rows = unit(150, dimension=16).requires_grad_(True), torch.arange(50)
    embeddings = normalize(leaf, dim=1)  # the library does so itself: only gradients along the sphere are comparable
    # labels do not matter where the indices of the triplets are given
    tuples = (rows, rows + 50, rows + 100)
    loss, given = margin(beta=1.3), {"margin": 0.2, "beta": 1.3, "learn_beta": True}
    values = loss(*(embeddings[index] for index in tuples))
    each = oracle.MarginLoss(**given, reducer=DoNothingReducer())(embeddings, torch.zeros(150), tuples)
    torch.testing.assert_close(values, each["margin_loss"]["losses"], atol=1e-6, rtol=0)
    reference = oracle.MarginLoss(**given, **({"reducer": MeanReducer()} if reducer == "mean" else {}))
    expected = reference(embeddings, torch.zeros(150), tuples)
    anchor, positive, negative = (embeddings[index].detach() for index in tuples)
    costing = ((anchor - positive).norm(dim=1) > 1.1).sum() + ((anchor - negative).norm(dim=1) < 1.5).sum()
    assert 0 < costing < 100
    found = values.mean() if reducer == "mean" else values.sum() / costing
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    gradients = torch.autograd.grad(found, [loss.beta, leaf], retain_graph=True)
    wanted = torch.autograd.grad(expected, [reference.beta, leaf])
    assert gradients[0].abs() > 0
    torch.testing.assert_close(gradients[0], wanted[0].squeeze(), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradients[1], wanted[1], atol=1e-6, rtol=0)


def test_training_moves_beta(toy_split: Split) -> None:
    """Embeddings of an untrained network lie close: only negatives cost, so Adam's first step takes beta down."""
    loss = margin()
    assert dict(loss.named_parameters()).keys() == {"beta"}
    assert loss.beta.item() == pytest.approx(1.2)
    train(toy_split, loss, Standard(), ONE_STEP)
    assert loss.beta.item() == pytest.approx(1.2 - ONE_STEP.learning_rate, abs=1e-6)
    restored = margin()
    restored.load_state_dict(loss.state_dict())
    assert torch.equal(restored.beta, loss.beta)


@pytest.mark.parametrize("defense", [Robust(EPS, 2), SingleStep(EPS), Trades(EPS, 2)])
def test_defences_leave_the_gradient_of_beta_to_the_training_loop(
    defense: Defense, model: Linear, images: Tensor, generator: torch.Generator
) -> None:
    loss = margin().train()
    values = defense(model, images, LABELS, loss, generator)
    assert values.shape == (9,)
    assert loss.beta.grad is None
    values.mean().backward()
    assert loss.beta.grad.abs() > 0


def test_multi_similarity_by_hand() -> None:
    """Every pair of a query counts, near or far, its own image in the reference excepted."""
    queries, reference = unit(9, 1), unit(9)
    for alpha, beta, base in ((2.0, 50.0, 0.5), (1.5, 10.0, 0.2)):
        found = MultiSimilarity(3, 8, alpha=alpha, beta=beta, base=base)(queries, LABELS, reference, LABELS, OWN)
        for row, query in enumerate(queries):
            pull = push = 1.0
            for other, item in enumerate(reference):
                similarity = float(query @ item)
                if LABELS[other] != LABELS[row]:
                    push += math.exp(beta * (similarity - base))
                elif other != row:
                    pull += math.exp(-alpha * (similarity - base))
            assert found[row].item() == pytest.approx(math.log(pull) / alpha + math.log(push) / beta)


def test_multi_similarity_at_its_base() -> None:
    """One positive and two negatives at 60 degrees: each exponential is 1."""
    labels, own = torch.tensor([0]), torch.tensor([-1])
    found = MultiSimilarity(2, 2)(at_angle(0), labels, at_angle(60, -60, 60), torch.tensor([0, 1, 1]), own)
    assert found.item() == pytest.approx(math.log(2) / 2 + math.log(3) / 50)


def test_named_losses_have_the_published_settings() -> None:
    similarity, anchor = multi_similarity().loss, proxy_anchor().loss
    assert (similarity.alpha, similarity.beta, similarity.base) == (2, 50, 0.5)
    assert (anchor.margin, anchor.alpha) == (0.1, 32)
    assert (margin().margin, margin().beta.item()) == (0.2, pytest.approx(1.2))


def test_multi_similarity_is_the_one_of_pytorch_metric_learning() -> None:
    embeddings, settings = unit(9), {"alpha": 3.0, "beta": 20.0, "base": 0.4}
    found = multi_similarity(**settings).natural(embeddings, LABELS, torch.Generator())
    plain = PML(6, 8, name="MultiSimilarityLoss", **settings).natural(embeddings, LABELS, torch.Generator())
    assert torch.equal(found, plain)
    reference = oracle.MultiSimilarityLoss(**settings, reducer=MeanReducer())
    torch.testing.assert_close(found.mean(), reference(embeddings, LABELS))


@pytest.mark.parametrize("settings", [{}, {"margin": 0.3, "alpha": 8.0}])
def test_proxy_anchor_by_hand(settings: dict[str, float]) -> None:
    """Two of the five classes are not in the batch: their proxies only push."""
    loss, queries = proxy_anchor(5, **settings).double(), unit(9)
    delta, alpha = settings.get("margin", 0.1), settings.get("alpha", 32.0)
    similarity = queries @ normalize(loss.loss.proxies.detach(), dim=1).T
    pull = push = 0.0
    for proxy in range(5):
        near, far = (similarity[mask, proxy].tolist() for mask in (proxy == LABELS, proxy != LABELS))
        pull += math.log(1 + sum(math.exp(-alpha * (value - delta)) for value in near)) / 3
        push += math.log(1 + sum(math.exp(alpha * (value + delta)) for value in far)) / 5
    values = loss.natural(queries, LABELS, torch.Generator())
    torch.testing.assert_close(values, torch.full((9,), pull + push, dtype=torch.float64))


def test_proxies_are_parameters_that_a_seed_decides() -> None:
    first, second, other = proxy_anchor(), proxy_anchor(), proxy_anchor(seed=1)
    ((name, proxies),) = first.named_parameters()
    assert (name, proxies.shape) == ("loss.proxies", (6, 8))
    assert torch.equal(proxies, second.loss.proxies)
    assert not torch.equal(proxies, other.loss.proxies)
    first.natural(unit(9).float(), LABELS, torch.Generator()).mean().backward()
    assert (proxies.grad.norm(dim=1) > 0).all(), "those of absent classes too"


@pytest.mark.parametrize("make", [multi_similarity, proxy_anchor])
def test_perturbed_queries_raise_a_batch_loss(
    make: Callable[[], BatchLoss], model: Linear, images: Tensor, generator: torch.Generator
) -> None:
    """Also where all queries share one value. Its parameters are those of before, and their gradient is left alone."""
    loss = make().train()
    before = [parameter.detach().clone() for parameter in loss.parameters()]
    values = Robust(EPS, 5, "query")(model, images, LABELS, loss, generator)
    clean, perturbed = model.seen
    assert torch.equal(clean, images)
    assert 0 < (perturbed - images).abs().max() <= EPS + 1e-7
    with torch.no_grad():
        fixed = model(images)
        natural = loss(fixed, LABELS, fixed, LABELS, OWN)
        random = (images + EPS * torch.empty_like(images).uniform_(-1, 1, generator=generator)).clamp(0, 1)
        noisy = loss(model(random), LABELS, fixed, LABELS, OWN)
        torch.testing.assert_close(values.detach(), loss(model(perturbed), LABELS, fixed, LABELS, OWN))
    assert (values > natural).all()
    assert (values > noisy).all(), "more than noise in the same ball"
    assert all(torch.equal(*pair) for pair in zip(before, loss.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in [*loss.parameters(), *model.parameters()])
    assert model.training
    assert loss.training


def test_one_query_of_proxy_anchor_is_perturbed_as_if_alone_in_the_sum(model: Linear, images: Tensor) -> None:
    """All queries get the batch's value; the summed gradient still has the sign of that value's own gradient."""
    loss, moving = proxy_anchor().train(), images.clone().requires_grad_(True)
    values = loss(model(moving), LABELS, model(images), LABELS, OWN)
    (summed,) = torch.autograd.grad(values.sum(), moving, retain_graph=True)
    (single,) = torch.autograd.grad(values[0], moving)
    torch.testing.assert_close(summed, 9 * single)
    assert (single.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("make", [multi_similarity, proxy_anchor])
@pytest.mark.parametrize(
    "defend",
    [
        Standard,
        lambda: Robust(EPS, 1, "query"),
        lambda: SingleStep(EPS),
        lambda: Trades(EPS, 1),
        lambda: FARE(EPS, 1, natural=0.5),
    ],
)
def test_batch_losses_train_with_every_defence_of_queries(
    make: Callable[[], BatchLoss], defend: Callable[[], Defense], toy_split: Split
) -> None:
    """Two steps change the model and the proxies, in the same way each time."""
    schedule = Schedule(1, 2, 6, 3, optimizer="adam", rate="constant", learning_rate=0.01, averaging=0.0)
    (loss, model), (_, again) = ((loss := make(), train(toy_split, loss, defend(), schedule)) for _ in range(2))
    start = build("conv4", 8, seed=0, statistics=toy_split.statistics())
    assert not torch.equal(model.head.weight, start.head.weight)
    assert torch.equal(model.head.weight, again.head.weight)
    for old, new in zip(make().parameters(), loss.parameters(), strict=True):
        assert (new - old).norm(dim=1).gt(0).all()


@pytest.mark.parametrize("defense", [Robust(0.0, 2, "query"), SingleStep(0.0), Trades(0.0, 2)])
@pytest.mark.parametrize("make", [multi_similarity, proxy_anchor])
def test_radius_zero_is_the_natural_loss(
    make: Callable[[], BatchLoss], defense: Defense, model: Linear, images: Tensor, generator: torch.Generator
) -> None:
    loss = make().train()
    found = defense(model, images, LABELS, loss, generator)
    torch.testing.assert_close(found, loss.natural(model(images), LABELS, generator))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("margin", {"miner": "random", "margin": -0.1}, r"loss\.margin is -0\.1; it must be at least 0"),
        ("margin", {"miner": "random", "beta": -1}, r"loss\.beta is -1\.0; it must be at least 0"),
        ("margin", {"miner": "randm"}, "miner 'randm' is unknown; did you mean 'random'"),
        ("margin", {}, "loss lacks the key 'miner'"),
        ("multi_similarity", {"alpha": 0}, r"loss\.alpha is 0\.0; it must be above 0"),
        ("multi_similarity", {"beta": float("nan")}, r"loss\.beta is nan; it must be above 0"),
        ("multi_similarity", {"bas": 1}, "loss key 'bas' is unknown; did you mean 'base'"),
        ("proxy_anchor", {"margin": -1}, r"loss\.margin is -1\.0; it must be at least 0"),
        ("proxy_anchor", {"alpha": 0}, r"loss\.alpha is 0\.0; it must be above 0"),
        ("proxy_anchor", {"alpha": "big"}, r"loss\.alpha is 'big'"),
    ],
)
def test_settings_that_make_no_sense(name: str, settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        training.loss(name, settings, classes=6, dimension=8)


def test_settings_of_params_reach_the_losses() -> None:
    built = training.loss("margin", {"miner": "semi_hard", "margin": 0.1, "beta": 1}, classes=6, dimension=8)
    assert (built.miner, built.margin, built.beta.item()) == ("semi_hard", 0.1, 1)
    built = training.loss("multi_similarity", {"alpha": 1, "beta": 40, "base": 1}, classes=6, dimension=8)
    assert (built.loss.alpha, built.loss.beta, built.loss.base) == (1, 40, 1)
    built = training.loss("proxy_anchor", {"margin": 0, "alpha": 16}, classes=6, dimension=8)
    assert (built.loss.margin, built.loss.alpha, built.loss.proxies.shape) == (0, 16, (6, 8))
