"""Defences: what stands in which role, against what it was perturbed, and what reaches the gradient."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dml.data import Split
from dml.defenses import DEFENSES, Robust, SingleStep, Standard
from dml.defenses.robust import role_objective
from dml.losses import Triplet, TupleLoss, distance
from dml.losses.mining import Tuples, random_tuples
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


@pytest.fixture
def model() -> Recorder:
    torch.manual_seed(0)
    return Recorder().train()


@pytest.fixture
def images() -> Tensor:
    return 0.2 + 0.6 * torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def fixed_tuples(seen: list[Tensor] | None = None) -> TupleLoss:
    """A loss whose miner always gives the same tuples, and remembers the embeddings it was shown."""

    def mine(embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tuples:
        if seen is not None:
            seen.append(embeddings)
        return FIXED

    return TupleLoss(mine, Triplet(0.5))


@pytest.mark.parametrize("target", ["anchor", "positive", "negative"])
def test_robust_replaces_one_role_of_each_tuple(
    target: str, model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    mined: list[Tensor] = []
    values = Robust(EPS, 5, target)(model, images, LABELS, fixed_tuples(mined), generator)
    clean, perturbed = model.seen
    assert torch.equal(clean, images), "the batch itself stays clean"
    assert not mined[0].requires_grad
    torch.testing.assert_close(mined[0], model(images).detach())
    original = images[getattr(FIXED, target)]
    assert perturbed.shape == original.shape
    assert 0 < (perturbed - original).abs().max() <= EPS
    roles = dict(zip(Tuples._fields, FIXED.pick(model(images)), strict=True))
    roles[target] = model(perturbed)
    torch.testing.assert_close(values, Triplet(0.5)(**roles))


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
    Robust(EPS, 5, target)(model, images, LABELS, fixed_tuples(), generator)
    assert (objective(model.seen[1]) > objective(clean)).all()


def test_robust_takes_one_gradient_through_clean_and_perturbed(
    model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    Robust(EPS, 2)(model, images, LABELS, fixed_tuples(), generator).mean().backward()
    found = model.linear.weight.grad.clone()
    clean, perturbed = model.seen
    model.zero_grad()
    anchor, _, negative = FIXED.pick(model(clean))
    Triplet(0.5)(anchor, model(perturbed), negative).mean().backward()
    torch.testing.assert_close(found, model.linear.weight.grad)


def test_single_step_perturbs_half_of_the_anchors(images: Tensor, generator: torch.Generator) -> None:
    torch.manual_seed(0)
    model = Recorder().train()
    big = images.repeat(2, 1, 1, 1)
    labels = torch.arange(12) // 2
    tuples = Tuples(torch.arange(0, 12, 2), torch.arange(1, 12, 2), (torch.arange(0, 12, 2) + 4) % 12)
    values = SingleStep(EPS)(model, big, labels, TupleLoss(lambda e, y, g: tuples, Triplet(0.5)), generator)
    clean, perturbed = model.seen
    assert torch.equal(clean, big)
    assert len(perturbed) == len(tuples.anchor) // 2
    natural = Triplet(0.5)(*tuples.pick(model(big)))
    same = torch.isclose(values, natural)
    assert same.sum() == len(tuples.anchor) - len(perturbed)
    assert (values[~same] > natural[~same]).all(), "FGSM raises the loss of a nearly linear model"


def test_single_step_draws_its_radius_from_a_truncated_normal(model: Recorder, images: Tensor) -> None:
    """Half-normal with standard deviation eps / 2, cut at eps: a median of 0.32 eps."""
    radii = []
    for seed in range(300):
        model.seen.clear()
        SingleStep(EPS)(model, images, LABELS, fixed_tuples(), torch.Generator().manual_seed(seed))
        anchors = images[FIXED.anchor]
        radii.append(float(min((model.seen[1][0] - anchor).abs().max() for anchor in anchors)))
    radii = torch.tensor(radii)
    assert radii.min() >= 0
    assert radii.max() <= EPS
    assert radii.median() / EPS == pytest.approx(0.32, abs=0.05)


@pytest.mark.parametrize("make", [lambda: Robust(0.0, 2), lambda: SingleStep(0.0)])
def test_radius_zero_is_standard_training(
    make: Callable[[], Robust], model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    defended = make()(model, images, LABELS, fixed_tuples(), generator)
    torch.testing.assert_close(defended, Standard()(model, images, LABELS, fixed_tuples(), generator))


@pytest.mark.parametrize("name", sorted(DEFENSES))
def test_every_defence_trains_a_real_model(name: str, generator: torch.Generator) -> None:
    """One loss a tuple, gradients for every parameter, modes as they were, no use of the global generator."""
    model = build("conv4", 8, seed=0).train()
    images = torch.rand(6, 3, 32, 32, generator=generator)
    before = torch.get_rng_state()
    values = DEFENSES[name]()(model, images, LABELS, fixed_tuples(), generator)
    assert values.shape == (3,)
    assert all(parameter.grad is None for parameter in model.parameters())
    values.mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_radius_grows_over_the_ramp(model: Recorder, images: Tensor) -> None:
    """Half-way up the ramp it is half of eps, with a step to match; from its end on, all of it."""

    def last_batch(defense: Robust, progress: float) -> Tensor:
        defense(model, images, LABELS, fixed_tuples(), torch.Generator().manual_seed(0), progress)
        return model.seen[-1]

    ramped = Robust(EPS, 3, ramp=0.8)
    assert torch.equal(last_batch(ramped, 0.0), images[FIXED.positive])
    for progress, share in ((0.4, 0.5), (0.8, 1.0), (1.0, 1.0)):
        assert torch.equal(last_batch(ramped, progress), last_batch(Robust(share * EPS, 3), 0.0))
    stepped = Robust(EPS, 3, step_size=0.04, ramp=0.5)
    assert torch.equal(last_batch(stepped, 0.25), last_batch(Robust(EPS / 2, 3, step_size=0.02), 1.0))
    with pytest.raises(ValueError, match="ramp is 2; it should lie between 0 and 1"):
        Robust(EPS, 3, ramp=2)


def test_training_says_how_far_it_is(toy_split: Split, tmp_path: Path) -> None:
    told = []

    def defense(*given: object) -> Tensor:
        told.append(given[-1])
        return Standard()(*given)

    fit(
        build("conv4", 8, seed=0),
        toy_split,
        TupleLoss(random_tuples, Triplet()),
        defense,
        Schedule(epochs=2, batches=2, classes=3, images_per_class=2),
        seed=0,
        validate=lambda model: {"natural": 0.0},
        select="natural",
        checkpoint=tmp_path / "state.pt",
        report=lambda line: None,
    )
    assert told == [0.0, 0.25, 0.5, 0.75]
