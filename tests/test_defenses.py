"""Defences: which role is perturbed, relative to what, and what reaches the gradient."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dml.attacks.objectives.tuples import role_objective
from dml.common.table import find
from dml.data.base import Split
from dml.defenses import DEFENSES
from dml.defenses.base import Defense
from dml.defenses.robust import Robust
from dml.defenses.single_step import SingleStep
from dml.defenses.standard import Standard
from dml.losses.base import BatchLoss, Loss, distance, pairs
from dml.losses.miners.base import Tuples
from dml.losses.triplet import Triplet
from dml.models.embedder import build
from dml.training.loop import fit
from dml.training.schedule import Schedule

EPS = 0.1
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
FIXED = Tuples(torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5]), torch.tensor([2, 4, 0]))


class Recorder(nn.Module):
    """A linear embedder that remembers every batch it was given in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 4 * 4, 8)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.append(images.detach().clone())
        return nn.functional.normalize(self.linear(images.flatten(1)), dim=1)


class FixedTuples(Triplet):
    """A triplet loss whose miner always gives the same tuples, and remembers the embeddings it was shown."""

    def __init__(self, tuples: Tuples = FIXED) -> None:
        super().__init__(12, 8, miner="random", margin=0.5)
        self.tuples = tuples
        self.seen: list[Tensor] = []

    def mine(self, embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tuples:
        self.seen.append(embeddings)
        return self.tuples


class Furthest(BatchLoss):
    """Mean squared distance to the positives minus that to the negatives, and what the loss was called with."""

    def __init__(self) -> None:
        super().__init__(3, 8)
        self.calls: list[tuple[Tensor, ...]] = []

    def forward(
        self, queries: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor, own: Tensor
    ) -> Tensor:
        if self.training:
            self.calls.append((queries, labels, reference, reference_labels, own))
        apart = torch.cdist(queries, reference).square()
        same, other = pairs(labels, reference_labels, own)
        return (apart * same).sum(1) / same.sum(1) - (apart * other).sum(1) / other.sum(1)


@pytest.fixture
def model() -> Recorder:
    torch.manual_seed(0)
    return Recorder().train()


@pytest.fixture
def images() -> Tensor:
    return 0.2 + 0.6 * torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("target", ["anchor", "positive", "negative"])
def test_robust_replaces_one_role_of_each_tuple(
    target: str, model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    loss = FixedTuples()
    values = Robust(EPS, 5, target)(model, images, LABELS, loss, generator)
    clean, perturbed = model.seen
    assert torch.equal(clean, images), "the batch itself stays clean"
    assert not loss.seen[0].requires_grad
    torch.testing.assert_close(loss.seen[0], model(images).detach())
    original = images[getattr(FIXED, target)]
    assert perturbed.shape == original.shape
    assert 0 < (perturbed - original).abs().max() <= EPS
    roles = dict(zip(Tuples._fields, FIXED.pick(model(images)), strict=True))
    roles[target] = model(perturbed)
    torch.testing.assert_close(values, loss(**roles))


@pytest.mark.parametrize(
    "target", [["positive", "negative"], ["negative", "anchor"], ["anchor", "positive", "negative"]]
)
def test_robust_perturbs_each_listed_role_by_itself(target: list[str], model: Recorder, images: Tensor) -> None:
    """Relative to the clean embeddings of the others, as if it were the only one, and all of them reach the loss."""
    draws = [torch.Generator().manual_seed(0) for _ in range(2)]
    loss = FixedTuples()
    values = Robust(EPS, 3, target)(model, images, LABELS, loss, draws[0])
    clean, *perturbed = model.seen
    assert torch.equal(clean, images)
    assert len(perturbed) == len(target)
    roles = dict(zip(Tuples._fields, FIXED.pick(model(images)), strict=True))
    for role, changed in zip(target, perturbed, strict=True):
        Robust(EPS, 3, role)(model, images, LABELS, loss, draws[1])
        assert torch.equal(changed, model.seen[-1]), "bit for bit, with the same draws"
        roles[role] = model(changed)
    torch.testing.assert_close(values, loss(**roles))
    values.mean().backward()
    found = model.linear.weight.grad.clone()
    model.zero_grad()
    loss(**roles).mean().backward()
    torch.testing.assert_close(found, model.linear.weight.grad)


def test_a_list_of_one_role_is_that_role(model: Recorder, images: Tensor) -> None:
    one, listed = (
        Robust(EPS, 3, target)(model, images, LABELS, FixedTuples(), torch.Generator().manual_seed(0))
        for target in ("negative", ["negative"])
    )
    assert torch.equal(one, listed)


@pytest.mark.parametrize("target", ["anchor", "positive", "negative"])
def test_robust_perturbation_raises_its_own_term(
    target: str, model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    model.eval()
    anchor, positive, negative = FIXED.pick(model(images).detach())
    objective = role_objective(model, target, anchor, positive, negative)
    by_hand = {
        "positive": lambda e: distance(e, anchor),
        "negative": lambda e: -distance(e, anchor),
        "anchor": lambda e: distance(e, positive) - distance(e, negative),
    }[target]
    clean = images[getattr(FIXED, target)]
    torch.testing.assert_close(objective(clean), by_hand(model(clean)))
    model.train()
    Robust(EPS, 5, target)(model, images, LABELS, FixedTuples(), generator)
    assert (objective(model.seen[1]) > objective(clean)).all()


def test_robust_takes_one_gradient_through_clean_and_perturbed(
    model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    loss = FixedTuples()
    Robust(EPS, 2)(model, images, LABELS, loss, generator).mean().backward()
    found = model.linear.weight.grad.clone()
    clean, perturbed = model.seen
    model.zero_grad()
    anchor, _, negative = FIXED.pick(model(clean))
    loss(anchor, model(perturbed), negative).mean().backward()
    torch.testing.assert_close(found, model.linear.weight.grad)


def test_robust_perturbs_queries_relative_to_the_clean_batch(
    model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    loss = Furthest().train()
    values = Robust(EPS, 5, "query")(model, images, LABELS, loss, generator)
    ((queries, labels, reference, reference_labels, own),) = loss.calls  # the adversary's are in evaluation mode
    clean, perturbed = model.seen
    assert torch.equal(clean, images)
    assert 0 < (perturbed - images).abs().max() <= EPS
    torch.testing.assert_close(queries, model(perturbed))
    torch.testing.assert_close(reference, model(images))
    assert torch.equal(labels, LABELS)
    assert torch.equal(reference_labels, LABELS)
    assert own.tolist() == list(range(6))
    fixed = model(images).detach()
    natural = loss(fixed, LABELS, fixed, LABELS, own)
    torch.testing.assert_close(values, loss(model(perturbed), LABELS, fixed, LABELS, own))
    assert (values > natural).all(), "the adversary raises the loss itself"
    values.mean().backward()
    found = model.linear.weight.grad.clone()
    model.zero_grad()
    loss(model(perturbed), LABELS, model(images), LABELS, own).mean().backward()
    torch.testing.assert_close(found, model.linear.weight.grad)


@pytest.mark.parametrize(
    ("target", "loss", "words"),
    [
        (
            "query",
            FixedTuples(),
            "target is 'query'; FixedTuples costs tuples, so it must be 'positive', 'negative' or",
        ),
        ("anchor", Furthest(), "target is 'anchor'; Furthest costs whole queries, so it must be 'query'"),
        (["anchor"], Furthest(), r"target is \['anchor'\]; Furthest costs whole queries, so it must be 'query'"),
    ],
)
def test_a_target_that_the_loss_does_not_have(
    target: str | list[str], loss: Loss, words: str, model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    with pytest.raises(ValueError, match=words):
        Robust(EPS, 2, target)(model, images, LABELS, loss, generator)


def test_single_step_perturbs_half_of_the_anchors(images: Tensor, generator: torch.Generator, model: Recorder) -> None:
    big = images.repeat(2, 1, 1, 1)
    tuples = Tuples(torch.arange(0, 12, 2), torch.arange(1, 12, 2), (torch.arange(0, 12, 2) + 4) % 12)
    loss = FixedTuples(tuples)
    values = SingleStep(EPS)(model, big, torch.arange(12) // 2, loss, generator)
    clean, perturbed = model.seen
    assert torch.equal(clean, big)
    assert len(perturbed) == len(tuples.anchor) // 2
    natural = loss(*tuples.pick(model(big)))
    same = torch.isclose(values, natural)
    assert same.sum() == len(tuples.anchor) - len(perturbed)
    assert (values[~same] > natural[~same]).all(), "FGSM raises the loss of a nearly linear model"


def test_single_step_perturbs_half_of_the_queries(images: Tensor, generator: torch.Generator, model: Recorder) -> None:
    loss = Furthest().train()
    values = SingleStep(EPS)(model, images, LABELS, loss, generator)
    clean, perturbed = model.seen
    assert torch.equal(clean, images)
    assert len(perturbed) == 3
    natural = loss.natural(model(images), LABELS, generator)
    same = torch.isclose(values, natural)
    assert same.sum() == 3
    assert (values[~same] > natural[~same]).all()
    torch.testing.assert_close(loss.calls[0][2], model(images), msg="the reference is clean")


def test_single_step_draws_its_radius_from_a_truncated_normal(model: Recorder, images: Tensor) -> None:
    """Half-normal with standard deviation eps / 2, cut at eps: a median of 0.32 eps."""
    radii = []
    for seed in range(300):
        model.seen.clear()
        SingleStep(EPS)(model, images, LABELS, FixedTuples(), torch.Generator().manual_seed(seed))
        anchors = images[FIXED.anchor]
        radii.append(float(min((model.seen[1][0] - anchor).abs().max() for anchor in anchors)))
    radii = torch.tensor(radii)
    assert radii.min() >= 0
    assert radii.max() <= EPS
    assert radii.median() / EPS == pytest.approx(0.32, abs=0.05)


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (lambda: Robust(0.0, 2), FixedTuples()),
        (lambda: Robust(0.0, 2, ["positive", "negative"]), FixedTuples()),
        (lambda: SingleStep(0.0), FixedTuples()),
        (lambda: Robust(0.0, 2, "query"), Furthest()),
        (lambda: SingleStep(0.0), Furthest()),
    ],
)
def test_radius_zero_is_standard_training(
    make: Callable[[], Defense], loss: Loss, model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    defended = make()(model, images, LABELS, loss, generator)
    torch.testing.assert_close(defended, Standard()(model, images, LABELS, loss, generator))


@pytest.mark.parametrize("name", sorted(DEFENSES))
def test_every_defence_trains_a_real_model(name: str, generator: torch.Generator) -> None:
    """One loss per tuple or image, gradients for every parameter, modes as they were, global generator unused."""
    model = build("conv4", 8, seed=0).train()
    loss = FixedTuples().train()
    images = torch.rand(6, 3, 32, 32, generator=generator)
    before = torch.get_rng_state()
    values = find(DEFENSES, name, "defense")()(model, images, LABELS, loss, generator)
    assert values.shape in {(3,), (6,)}
    assert all(parameter.grad is None for parameter in model.parameters())
    values.mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(module.training for module in [*model.modules(), *loss.modules()])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("defense", [Robust(EPS, 2, "query"), SingleStep(EPS)])
def test_batch_losses_leave_modes_and_the_global_generator(
    defense: Defense, model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    loss, before = Furthest().train(), torch.get_rng_state()
    assert defense(model, images, LABELS, loss, generator).shape == (6,)
    assert model.training
    assert loss.training
    assert torch.equal(torch.get_rng_state(), before)


def test_the_radius_grows_over_the_ramp(model: Recorder, images: Tensor) -> None:
    """Half-way up the ramp it is half of eps, with a step to match; from its end on, all of it."""

    def last_batch(defense: Robust, progress: float) -> Tensor:
        defense(model, images, LABELS, FixedTuples(), torch.Generator().manual_seed(0), progress)
        return model.seen[-1]

    ramped = Robust(EPS, 3, ramp=0.8)
    assert torch.equal(last_batch(ramped, 0.0), images[FIXED.positive])
    for progress, share in ((0.4, 0.5), (0.8, 1.0), (1.0, 1.0)):
        assert torch.equal(last_batch(ramped, progress), last_batch(Robust(share * EPS, 3), 0.0))
    stepped = Robust(EPS, 3, step_size=0.04, ramp=0.5)
    assert torch.equal(last_batch(stepped, 0.25), last_batch(Robust(EPS / 2, 3, step_size=0.02), 1.0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Robust(EPS, 3, ramp=2), "ramp is 2; it must lie between 0 and 1"),
        (lambda: Robust(EPS, 3, step_size=0), "step_size is 0; it must be above 0"),
        (lambda: Robust(EPS, 0), "steps is 0"),
        (lambda: Robust(8), "eps is 8; .*perhaps 8/255"),
        (lambda: SingleStep(8), "eps is 8; .*perhaps 8/255"),
        (lambda: Robust(target="postive"), "target 'postive' is unknown; did you mean 'positive'"),
        (lambda: Robust(target=[]), "target is an empty list; it must name at least one role"),
        (lambda: Robust(target=["anchor", "anchor"]), "target lists 'anchor' more than once; it must list each role"),
        (lambda: Robust(target=["anchor", "query"]), "role in target 'query' is unknown; known: anchor, negative, pos"),
    ],
)
def test_settings_that_make_no_sense(make: Callable[[], Defense], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_defence_without_a_constructor_takes_no_settings() -> None:
    """params.yaml is checked against the signature, and nn.Module's own takes anything."""
    assert list(inspect.signature(Standard).parameters) == []
    with pytest.raises(TypeError, match="eps"):
        Standard(eps=0.1)


def test_what_selects_an_epoch() -> None:
    scores = {"natural": 0.9, "adversarial": 0.1}
    assert Standard().score(scores) == 0.9
    assert Robust().score(scores) == SingleStep().score(scores) == 0.1


def test_training_says_how_far_it_is(toy_split: Split) -> None:
    told = []

    class Told(Standard):
        def forward(self, *given: object) -> Tensor:
            told.append(given[-1])
            return super().forward(*given)

    fit(
        build("conv4", 8, seed=0),
        toy_split,
        Triplet(6, 8, miner="random"),
        Told(),
        Schedule(epochs=2, batches=2, classes=3, images_per_class=2),
        seed=0,
        validate=lambda model: {"natural": 0.0},
        report=lambda line: None,
        timing=lambda line: None,
    )
    assert told == [0.0, 0.25, 0.5, 0.75]
