"""Defences that perturb each image of the batch once: which images move, how far, and what reaches the gradient."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import LinearEmbedder
from torch import Tensor, nn

from dml.attacks.balls import Linf
from dml.attacks.optimisers.pgd import pgd
from dml.common.randomness import seeded_global
from dml.data.base import Split
from dml.defenses.base import Defense
from dml.defenses.est import EST
from dml.defenses.fare import FARE
from dml.defenses.joint import Joint
from dml.defenses.robust import Robust
from dml.defenses.standard import Standard
from dml.defenses.trades import Trades
from dml.losses.base import BatchLoss, Loss, pairs
from dml.losses.miners.base import Tuples
from dml.losses.pml import PML
from dml.losses.triplet import Triplet
from dml.models.embedder import build
from dml.training.checkpoint import Checkpoint
from dml.training.loop import History, fit
from dml.training.schedule import Schedule

EPS = 0.1
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
# Image 2 is a negative twice and an anchor once; image 5 is a positive only.
FIXED = Tuples(torch.tensor([0, 2, 3, 4]), torch.tensor([1, 3, 2, 5]), torch.tensor([2, 4, 1, 2]))
OTHERS = Tuples(torch.tensor([5, 1, 3]), torch.tensor([4, 0, 2]), torch.tensor([3, 3, 0]))


class Recorder(LinearEmbedder):
    """A linear embedder that remembers every batch it was given in training mode."""

    def __init__(self, dimension: int = 8) -> None:
        super().__init__(3 * 4 * 4, dimension)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.append(images.detach().clone())
        return super().forward(images)


class FixedTuples(Triplet):
    """A triplet loss that mines the given tuples in turn, and remembers what it mined on and what it was asked."""

    def __init__(self, *tuples: Tuples, margin: float = 3.0) -> None:
        super().__init__(3, 8, miner="random", margin=margin)
        self.tuples = tuples or (FIXED,)
        self.mined: list[Tensor] = []
        self.roles: list[tuple[Tensor, Tensor, Tensor]] = []

    def mine(self, embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tuples:
        assert not embeddings.requires_grad
        self.mined.append(embeddings)
        return self.tuples[(len(self.mined) - 1) % len(self.tuples)]

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        if self.training:
            self.roles.append((anchor, positive, negative))
        return super().forward(anchor, positive, negative)


class Furthest(BatchLoss):
    """Mean squared distance to the positives minus that to the negatives, times 1 for query 0, 2 for query 1, ..."""

    def __init__(self) -> None:
        super().__init__(3, 8)
        self.calls: list[tuple[Tensor, ...]] = []

    def forward(
        self, queries: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor, own: Tensor
    ) -> Tensor:
        if self.training:
            self.calls.append((queries, reference, own))
        apart = (queries[:, None] - reference).square().sum(2)
        same, other = pairs(labels, reference_labels, own)
        return (1 + own) * ((apart * same).sum(1) / same.sum(1) - (apart * other).sum(1) / other.sum(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embed(model: Recorder, images: Tensor) -> Tensor:
    """The model's embeddings, without the model remembering the images."""
    return LinearEmbedder.forward(model, images)


def watch(model: nn.Module) -> list[Tensor]:
    """Return a list that receives every batch which the model is given in training mode."""
    seen: list[Tensor] = []

    def remember(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if module.training:
            seen.append(inputs[0].detach())

    model.register_forward_pre_hook(remember)
    return seen


def weight_gradient(values: Tensor, model: LinearEmbedder) -> Tensor:
    return torch.autograd.grad(values.mean(), model.weight)[0]


@pytest.fixture
def model() -> Recorder:
    return Recorder().train()


@pytest.fixture
def images() -> Tensor:
    return 0.2 + 0.6 * torch.rand(6, 3, 4, 4, generator=seeded(1), dtype=torch.float64)


# --- one perturbation per image, on the loss of the batch -------------------------------------------------------------


def by_hand(
    images: Tensor, weight: Tensor, mined: list[Tuples], targets: list[str], margin: float, size: float
) -> Tensor:
    """Sign ascent on the sum of triplet losses, one list of tuples per step, gradients written out."""
    home = images.flatten(1) @ weight.T
    perturbed = Linf(EPS).start(images, seeded())
    for tuples in mined:
        found = perturbed.flatten(1) @ weight.T
        gradient = torch.zeros_like(found)
        for rows in zip(*(rows.tolist() for rows in tuples), strict=True):
            a, p, n = (
                (found if role in targets else home)[row] for role, row in zip(Tuples._fields, rows, strict=True)
            )
            if (a - p).norm() - (a - n).norm() + margin <= 0:
                continue  # the hinge: this tuple moves nothing
            pull, push = (a - p) / (a - p).norm(), (a - n) / (a - n).norm()
            moves = {"anchor": pull - push, "positive": -pull, "negative": push}
            for role, row in zip(Tuples._fields, rows, strict=True):
                if role in targets:
                    gradient[row] += moves[role]
        perturbed = perturbed + size * (gradient @ weight).sign().view_as(images)
        perturbed = Linf(EPS).project(perturbed, images)
    return perturbed


def mixed(tuples: Tuples, targets: list[str], perturbed: Tensor, clean: Tensor) -> list[Tensor]:
    """Embeddings of each role: of the perturbed batch for those in ``targets``, else of the clean batch."""
    roles = zip(Tuples._fields, tuples, strict=True)
    return [(perturbed if role in targets else clean)[rows] for role, rows in roles]


TARGETS = [["anchor", "positive", "negative"], ["anchor"], ["negative"], ["positive", "negative"]]


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("margin", [-1.0, 0.0, 50.0])
def test_joint_equals_sign_ascent_by_hand(targets: list[str], margin: float, model: Recorder, images: Tensor) -> None:
    loss = FixedTuples(margin=margin)
    values = Joint(EPS, 4, targets, step_size=0.03)(model, images, LABELS, loss, seeded())
    expected = by_hand(images, model.weight.detach(), [FIXED] * 4, targets, margin, 0.03)
    torch.testing.assert_close(model.seen[-1], expected, rtol=0, atol=1e-12)
    clean, perturbed = embed(model, images), embed(model, model.seen[-1])
    roles = mixed(FIXED, targets, perturbed, clean)
    torch.testing.assert_close(values, loss(*roles))
    torch.testing.assert_close(weight_gradient(values, model), weight_gradient(loss(*roles), model))


def test_joint_leaves_what_costs_nothing_where_it_started(model: Recorder, images: Tensor) -> None:
    Joint(EPS, 4)(model, images, LABELS, FixedTuples(margin=-1e6), seeded())
    assert torch.equal(model.seen[-1], Linf(EPS).start(images, seeded()))


@pytest.mark.parametrize("targets", TARGETS)
def test_an_image_in_several_tuples_moves_once(targets: list[str], model: Recorder, images: Tensor) -> None:
    """Image 2 is the negative of tuples 0 and 3, and the anchor of tuple 1."""
    loss = FixedTuples().train()
    Joint(EPS, 3, targets)(model, images, LABELS, loss, seeded())
    ((anchor, _, negative),) = loss.roles  # the adversary asks the loss in evaluation mode
    clean, perturbed = embed(model, images)[2], embed(model, model.seen[-1])[2]
    assert not torch.allclose(clean, perturbed)
    assert torch.equal(negative[0], negative[3])
    torch.testing.assert_close(negative[0], perturbed if "negative" in targets else clean)
    torch.testing.assert_close(anchor[1], perturbed if "anchor" in targets else clean)


def test_images_that_were_normalised_before_are_refused() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.LazyLinear(8)), torch.randn(6, 3, 4, 4)
    with pytest.raises(ValueError, match=r"the images lie in \[-\d.*the model must normalise them itself"):
        Joint(0.1, 1)(model, images, torch.tensor([0, 0, 1, 1, 2, 2]), FixedTuples(FIXED), torch.Generator())


def test_robust_moves_an_image_in_one_slot_only(model: Recorder, images: Tensor) -> None:
    loss = FixedTuples().train()
    Robust(EPS, 3, "negative")(model, images, LABELS, loss, seeded())
    ((anchor, _, negative),) = loss.roles
    clean = embed(model, images)[2]
    torch.testing.assert_close(anchor[1], clean)
    assert not torch.allclose(negative[0], clean)
    assert not torch.allclose(negative[0], negative[3]), "another perturbation in each tuple"


@pytest.mark.parametrize("targets", TARGETS)
def test_joint_mines_anew_after_crafting(targets: list[str], model: Recorder, images: Tensor) -> None:
    loss = FixedTuples(FIXED, OTHERS)
    values = Joint(EPS, 3, targets, "after", 0.03)(model, images, LABELS, loss, seeded())
    clean, perturbed = embed(model, images), embed(model, model.seen[-1])
    assert len(loss.mined) == 2
    torch.testing.assert_close(loss.mined[0], clean.detach())
    torch.testing.assert_close(loss.mined[1], perturbed.detach())
    expected = by_hand(images, model.weight.detach(), [FIXED] * 3, targets, loss.margin, 0.03)
    torch.testing.assert_close(model.seen[-1], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(values, loss(*mixed(OTHERS, targets, perturbed, clean)))


@pytest.mark.parametrize("targets", TARGETS)
def test_joint_mines_anew_before_each_step(targets: list[str], model: Recorder, images: Tensor) -> None:
    loss = FixedTuples(FIXED, OTHERS)  # in turn: steps 1 and 3 use the first, step 2 and the training loss the second
    values = Joint(EPS, 3, targets, "each", 0.03)(model, images, LABELS, loss, seeded())
    clean, perturbed = embed(model, images), embed(model, model.seen[-1])
    assert len(loss.mined) == 4
    torch.testing.assert_close(loss.mined[0], embed(model, Linf(EPS).start(images, seeded())).detach())
    torch.testing.assert_close(loss.mined[3], perturbed.detach())
    expected = by_hand(images, model.weight.detach(), [FIXED, OTHERS, FIXED], targets, loss.margin, 0.03)
    torch.testing.assert_close(model.seen[-1], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(values, loss(*mixed(OTHERS, targets, perturbed, clean)))


def test_joint_perturbs_queries_and_reference_together(model: Recorder, images: Tensor) -> None:
    loss = Furthest().train()
    values = Joint(EPS, 1, step_size=0.05)(model, images, LABELS, loss, seeded())
    (perturbed,) = model.seen
    ((queries, reference, own),) = loss.calls
    assert own.tolist() == list(range(6))
    torch.testing.assert_close(queries, embed(model, perturbed))
    torch.testing.assert_close(reference, queries)
    natural = loss.natural(embed(model, perturbed), LABELS, seeded())
    torch.testing.assert_close(values, natural)
    torch.testing.assert_close(weight_gradient(values, model), weight_gradient(natural, model))
    # A query has one positive and four negatives. The pair (i, j) counts once with i as query and once with j.
    start = Linf(EPS).start(images, seeded())
    found = embed(model, start).detach()
    weights = (1 + own)[:, None] * torch.where(LABELS[:, None] == LABELS, 1, -0.25).double()
    weights = weights + weights.T
    gradient = 2 * (weights[:, :, None] * (found[:, None] - found)).sum(1)
    step = (gradient @ model.weight.detach()).sign().view_as(images)
    torch.testing.assert_close(perturbed, Linf(EPS).project(start + 0.05 * step, images))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("remine", ["none", "after", "each"])
def test_joint_sees_the_clean_batch_in_training_mode_only_if_it_trains_on_it(targets: list[str], remine: str) -> None:
    """So that BatchNorm's running statistics are those of the images that are trained on."""
    model = build("conv4", 8, seed=0).train()
    images = torch.rand(6, 3, 32, 32, generator=seeded(1))
    before = copy.deepcopy(model).train(len(targets) < 3)
    batches, loss = watch(model), FixedTuples().train()
    Joint(EPS, 2, targets, remine)(model, images, LABELS, loss, seeded())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    expected = 1 if len(targets) == 3 else 2
    assert len(batches) == expected
    assert [norm.num_batches_tracked.item() for norm in norms] == [expected] * len(norms)
    assert not torch.equal(batches[-1], images)
    assert expected == 1 or torch.equal(batches[0], images)
    if remine != "each":
        torch.testing.assert_close(loss.mined[0], before(images).detach(), msg="tuples of the clean batch")


@pytest.mark.parametrize(
    ("defense", "words"),
    [
        (Joint(targets=["anchor"]), r"targets is \['anchor'\]; Furthest has no roles, so it must be left at all three"),
        (Joint(remine="after"), "remine is 'after'; Furthest has no tuples to mine, so it must be 'none'"),
    ],
)
def test_settings_that_a_loss_on_the_batch_does_not_have(
    defense: Joint, words: str, model: Recorder, images: Tensor
) -> None:
    with pytest.raises(ValueError, match=words):
        defense(model, images, LABELS, Furthest(), seeded())


# --- EST --------------------------------------------------------------------------------------------------------------


def est_batch(model: Recorder, images: Tensor, *given: object, progress: float = 1.0, seed: int = 0) -> Tensor:
    """The batch that EST trains on."""
    EST(*given)(model, images, LABELS, FixedTuples(), seeded(seed), progress)
    return model.seen[-1]


def test_est_raises_the_shift_of_each_embedding_step_by_step(model: Recorder, images: Tensor) -> None:
    """The same start each time, so that more steps are further points of one path."""
    home = embed(model, images)
    path = [embed(model, est_batch(model, images, EPS, steps, 0.004)) - home for steps in range(1, 13)]
    start = embed(model, Linf(EPS).start(images, seeded())) - home
    shifts = torch.stack([start, *path]).detach().norm(dim=2)
    assert shifts.shape == (13, 6)
    assert (shifts.diff(dim=0) > 0).all(), "of each image, so their sum rises too"
    assert len(model.seen) == 12, "no pass on clean images in training mode"


def test_est_on_a_line_moves_by_the_gradient_of_the_line(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shift is |w . delta|, so each step adds step * |w|_1 to it."""
    monkeypatch.setattr(Linf, "start", lambda ball, images, generator: images + 0.002)
    model = Recorder(dimension=1).train()
    weight, home = model.weight.detach(), embed(model, images)
    for steps in range(1, 13):
        shift = (embed(model, est_batch(model, images, EPS, steps, 0.007)) - home).detach().norm(dim=1)
        by_hand = 0.002 * weight.sum().abs() + 0.007 * steps * weight.abs().sum()
        torch.testing.assert_close(shift, by_hand.expand(6))


def test_est_reaches_the_corner_of_the_ball(images: Tensor) -> None:
    """With a one-dimensional embedding w.x the largest shift in the ball is eps * |w|_1."""
    model = Recorder(dimension=1).train()
    shift = (embed(model, est_batch(model, images, EPS, 11, 0.02)) - embed(model, images)).detach().norm(dim=1)
    torch.testing.assert_close(shift, (EPS * model.weight.detach().abs().sum()).expand(6))


def test_est_stays_in_the_unit_box(model: Recorder, images: Tensor) -> None:
    corners = images.round()
    perturbed = est_batch(model, corners, EPS, 3)
    assert perturbed.min() >= 0
    assert perturbed.max() <= 1
    assert (perturbed - corners).abs().max() <= EPS


def test_the_radius_of_est_grows_over_the_ramp(model: Recorder, images: Tensor) -> None:
    ramped = (EPS, 3, None, 0.8)
    assert torch.equal(est_batch(model, images, *ramped, progress=0.0), images)
    for progress, share in ((0.4, 0.5), (0.8, 1.0), (1.0, 1.0)):
        expected = est_batch(model, images, share * EPS, 3)
        assert torch.equal(est_batch(model, images, *ramped, progress=progress), expected)


def test_a_seed_decides_the_start_of_est_and_nothing_else_is_drawn(model: Recorder, images: Tensor) -> None:
    before = torch.get_rng_state()
    assert torch.equal(est_batch(model, images, EPS, 2), est_batch(model, images, EPS, 2))
    assert not torch.equal(est_batch(model, images, EPS, 2), est_batch(model, images, EPS, 2, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EST(8), "eps is 8; .*perhaps 8/255"),
        (lambda: EST(EPS, 2, step_size=-1), "step_size is -1; it must be above 0"),
    ],
)
def test_settings_of_est_that_make_no_sense(make: Callable[[], EST], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_est_mines_and_costs_the_shifted_batch_alone(model: Recorder, images: Tensor) -> None:
    loss = FixedTuples().train()
    values = EST(EPS, 3)(model, images, LABELS, loss, seeded())
    (perturbed,) = model.seen
    assert perturbed.shape == images.shape, "an image moves once, for all its tuples"
    assert ((perturbed - images).abs().amax((1, 2, 3)) > 0).all()
    assert (perturbed - images).abs().max() <= EPS
    (mined,) = loss.mined
    torch.testing.assert_close(mined, embed(model, perturbed).detach())
    expected = loss(*FIXED.pick(embed(model, perturbed)))
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(weight_gradient(values, model), weight_gradient(expected, model))


@pytest.mark.parametrize("loss", [FixedTuples(), Furthest()])
def test_est_at_radius_zero_is_standard_training(loss: Loss, model: Recorder, images: Tensor) -> None:
    values = EST(0.0, 2)(model, images, LABELS, loss.train(), seeded())
    assert torch.equal(values, Standard()(model, images, LABELS, loss, seeded()))


def test_est_measures_the_shift_in_evaluation_mode() -> None:
    """BatchNorm normalises by other numbers in training; that difference is no shift."""
    model = build("conv4", 8, seed=0).train()
    images = torch.rand(6, 3, 32, 32, generator=seeded(1))
    attacked, seen = copy.deepcopy(model).eval(), watch(model)
    EST(EPS, 4)(model, images, LABELS, FixedTuples().train(), seeded())
    expected = pgd(
        images,
        lambda changed: (attacked(changed) - attacked(images).detach()).norm(dim=1),
        Linf(EPS),
        steps=4,
        step_size=EPS / 2,
        best=False,
        generator=seeded(),
    )
    torch.testing.assert_close(seen[-1], expected)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


# --- TRADES -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [FixedTuples(), Furthest()])
def test_trades_moves_each_embedding_as_far_as_the_ball_allows(loss: Loss, images: Tensor) -> None:
    """With a one-dimensional embedding w.x, the largest (w.d)^2 in the ball is (eps * |w|_1)^2, at a corner."""
    model = Recorder(dimension=1).train()
    values = Trades(EPS, 5, beta=3.0)(model, images, LABELS, loss.train(), seeded())
    natural = loss.natural(embed(model, images), LABELS, seeded())
    furthest = (EPS * model.weight.detach().abs().sum()).square()
    assert len(values) == len(natural)
    torch.testing.assert_close(values, natural + 3.0 * furthest)


@pytest.mark.parametrize(("loss", "count"), [(FixedTuples(), 4), (Furthest(), 6)])
def test_trades_costs_the_mean_of_each_term(loss: Loss, count: int, model: Recorder, images: Tensor) -> None:
    values = Trades(EPS, 2, beta=2.0)(model, images, LABELS, loss.train(), seeded())
    assert values.shape == (count,)
    clean, perturbed = model.seen
    assert torch.equal(clean, images)
    assert 0 < (perturbed - images).abs().max() <= EPS
    moved = (embed(model, perturbed) - embed(model, images)).square().sum(1)
    expected = loss.natural(embed(model, images), LABELS, seeded()).mean() + 2.0 * moved.mean()
    torch.testing.assert_close(values.mean(), expected)
    torch.testing.assert_close(weight_gradient(values, model), weight_gradient(expected, model))


def test_trades_compares_embeddings_of_one_mode() -> None:
    """BatchNorm's two modes differ at the same image; neither the adversary nor the loss may count that."""
    model = build("conv4", 8, seed=0).train()
    images = torch.rand(6, 3, 32, 32, generator=seeded(1))
    loss = FixedTuples().train()
    values = Trades(0.0, 2)(model, images, LABELS, loss, seeded())
    assert torch.equal(values, Standard()(model, images, LABELS, loss, seeded()))
    attacked = copy.deepcopy(model)
    attacked(images)  # the clean training pass comes before the adversary, and moves the running statistics
    attacked.eval()
    seen = watch(model)
    Trades(EPS, 4)(model, images, LABELS, loss, seeded())
    expected = pgd(
        images,
        lambda changed: (attacked(changed) - attacked(images).detach()).square().sum(1),
        Linf(EPS),
        steps=4,
        step_size=EPS / 2,
        best=False,
        generator=seeded(),
    )
    torch.testing.assert_close(seen[-1], expected)


# --- FARE -------------------------------------------------------------------------------------------------------------


class Unlabelled(FixedTuples):
    """A loss that must not be asked."""

    def natural(self, embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        raise AssertionError("the robust phase has no labels")


def test_fare_trains_naturally_first(model: Recorder, images: Tensor) -> None:
    defense = FARE(EPS, 2, natural=0.5)
    for progress in (0.0, 0.25, 0.49):
        values = defense(model, images, LABELS, FixedTuples(), seeded(), progress)
        assert torch.equal(values, Standard()(model, images, LABELS, FixedTuples(), seeded()))
    assert not defense.original
    scores = {"natural": 0.9, "adversarial": 0.5}
    assert defense.score(scores) == -math.inf, "an epoch of natural training is not kept"
    assert defense(model, images, LABELS, Unlabelled(), seeded(), 0.5).shape == (6,)
    assert defense.original
    assert defense.score(scores) == 0.5


def test_fare_keeps_to_the_embeddings_of_natural_training(images: Tensor) -> None:
    """With a one-dimensional embedding: the largest (w.(x + d) - w0.x)^2 is (w.x - w0.x + eps * |w|_1)^2 here."""
    model = Recorder(dimension=1).train()
    with torch.no_grad():
        model.weight.abs_()
    first = model.weight.detach().clone()
    defense = FARE(EPS, 5, natural=0.5)
    values = defense(model, images, LABELS, Unlabelled(), seeded(), 0.5)
    torch.testing.assert_close(values, (EPS * first.sum()).square().expand(6))
    with torch.no_grad():
        model.weight.mul_(3)  # a step of training, large enough that w.(x + d) > w0.x in the whole ball
    values = defense(model, images, LABELS, Unlabelled(), seeded(), 0.75)
    moved = (2 * images.flatten(1) @ first.T).squeeze(1) + 3 * EPS * first.sum()
    torch.testing.assert_close(values, moved.square())
    assert 0 < (model.seen[-1] - images).abs().max() <= EPS
    found = weight_gradient(values, model)
    expected = (embed(model, model.seen[-1]) - images.flatten(1) @ first.T).square().sum(1)
    torch.testing.assert_close(found, weight_gradient(expected, model), msg="no gradient through f0")


def test_fare_without_natural_training_copies_the_model_it_starts_from(model: Recorder, images: Tensor) -> None:
    defense = FARE(0.0, 1, natural=0.0)
    before = embed(model, images)
    assert torch.equal(defense(model, images, LABELS, Unlabelled(), seeded(), 0.0), torch.zeros(6).double())
    with torch.no_grad():
        model.weight.add_(0.1)
    values = defense(model, images, LABELS, Unlabelled(), seeded(), 0.1)
    torch.testing.assert_close(values, (embed(model, images) - before).square().sum(1))


def test_the_original_of_fare_is_in_evaluation_mode_and_stays_as_it_was() -> None:
    model = build("conv4", 8, seed=0).train()
    images = torch.rand(6, 3, 32, 32, generator=seeded(1))
    model(images)  # running statistics that differ from the batch's
    original = copy.deepcopy(model).eval()
    seen = watch(model)
    defense = FARE(EPS, 2, natural=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        values = defense(model, images, LABELS, Unlabelled(), seeded())
        with torch.no_grad():
            expected = (copy.deepcopy(model)(seen[-1]) - original(images)).square().sum(1)
        torch.testing.assert_close(values.detach(), expected)
        optimizer.zero_grad()
        values.mean().backward()
        optimizer.step()
    kept = dict(original.named_parameters()) | dict(original.named_buffers())
    assert defense.original.keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in defense.original.items())
    assert not any(value.requires_grad for value in defense.original.values())


@pytest.mark.parametrize("copied", [True, False])
def test_a_checkpoint_holds_the_original_of_fare(copied: bool, model: Recorder, images: Tensor, tmp_path: Path) -> None:
    first, second = FARE(EPS, 2), FARE(EPS, 2)
    if copied:
        first(model, images, LABELS, Unlabelled(), seeded(), 0.5)
    checkpoint = Checkpoint(tmp_path / "state.pt", "key")
    checkpoint.save(first.state_dict())
    second.load_state_dict(checkpoint.load())
    with torch.no_grad():
        model.weight.mul_(3)
    values = [defense(model, images, LABELS, Unlabelled(), seeded(), 0.6) for defense in (first, second)]
    assert torch.equal(*values)


def fare_training(split: Split, validate: Callable, checkpoint: Checkpoint | None = None) -> tuple[nn.Module, History]:
    """Four epochs, the latter half robust, with a loss that has parameters."""
    model = build("conv4", 8, seed=0, statistics=split.statistics())
    with seeded_global(0, "loss"):
        loss = PML(6, 8, name="ProxyAnchorLoss")
    history = fit(
        model,
        split,
        loss,
        FARE(EPS, 1, natural=0.5),
        Schedule(epochs=4, batches=2, classes=3, images_per_class=2, learning_rate=1e-2),
        seed=0,
        validate=validate,
        checkpoint=checkpoint,
        report=lambda line: None,
        timing=lambda line: None,
    )
    return model, history


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_killed_fare_training_resumes_before_and_after_the_copy(
    epochs: int, toy_split: Split, tmp_path: Path
) -> None:
    scores = {"natural": 0.0, "adversarial": 0.0}
    whole, history = fare_training(toy_split, lambda model: scores)
    calls = []

    def killed(model: nn.Module) -> dict[str, float]:
        calls.append(1)
        if len(calls) > epochs:
            raise KeyboardInterrupt
        return scores

    checkpoint = Checkpoint(tmp_path / "state.pt", "key")
    with pytest.raises(KeyboardInterrupt):
        fare_training(toy_split, killed, checkpoint)
    assert bool(checkpoint.load()["defense"]["_extra_state"]["original"]) == (epochs > 2)
    resumed, again = fare_training(toy_split, lambda model: scores, checkpoint)
    assert history == again
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


# --- what holds for all of them ---------------------------------------------------------------------------------------

MAKE: list[Callable[..., Defense]] = [
    Joint,
    lambda eps, steps, **given: Joint(eps, steps, ["positive", "negative"], **given),
    lambda eps, steps, **given: Joint(eps, steps, remine="after", **given),
    lambda eps, steps, **given: Joint(eps, steps, ["anchor"], "each", **given),
    Trades,
    lambda eps, steps: FARE(eps, steps, natural=0.0),
]
ON_BATCH: list[Callable[..., Defense]] = [Joint, Trades, lambda eps, steps: FARE(eps, steps, natural=0.0)]
ALL = [(make, FixedTuples) for make in MAKE] + [(make, Furthest) for make in ON_BATCH]


@pytest.mark.parametrize(("make", "kind"), [(make, kind) for make, kind in ALL if make not in {MAKE[-1], ON_BATCH[-1]}])
def test_radius_zero_is_standard_training(
    make: Callable[..., Defense], kind: type[Loss], model: Recorder, images: Tensor
) -> None:
    """FARE at radius zero is not: it keeps embeddings where they were, as its own tests say."""
    values = make(0.0, 2)(model, images, LABELS, kind(), seeded())
    torch.testing.assert_close(values, Standard()(model, images, LABELS, kind(), seeded()))


@pytest.mark.parametrize(("make", "kind"), ALL)
def test_a_seed_gives_the_same_losses(
    make: Callable[..., Defense], kind: type[Loss], model: Recorder, images: Tensor
) -> None:
    first, again, other = (
        make(EPS, 1)(model, images, LABELS, kind(), generator) for generator in (seeded(), seeded(), seeded(1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("make", "kind"), ALL)
def test_images_stay_in_the_ball_and_nothing_else_changes(
    make: Callable[..., Defense], kind: type[Loss], model: Recorder
) -> None:
    images = torch.rand(6, 3, 4, 4, generator=seeded(2), dtype=torch.float64).round(decimals=1)  # some at 0 and 1
    loss, before = kind().train(), torch.get_rng_state()
    make(EPS, 4)(model, images, LABELS, loss, seeded())
    assert 0.9 * EPS < (model.seen[-1] - images).abs().max() <= EPS
    assert model.seen[-1].min() >= 0
    assert model.seen[-1].max() <= 1
    assert model.training
    assert loss.training
    assert model.weight.grad is None
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make", MAKE)
def test_every_weight_gets_a_gradient_in_bfloat16(make: Callable[..., Defense]) -> None:
    """Autocast may keep weights that it cast without gradient for passes that need one."""
    model = build("conv4", 8, seed=0).train()
    images = torch.rand(6, 3, 32, 32, generator=seeded(1))
    with torch.autocast("cpu", torch.bfloat16):
        values = make(EPS, 2)(model, images, LABELS, FixedTuples().train(), seeded())
    values.mean().backward()
    assert values.dtype == torch.float32
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("kind", [Joint, Trades])
def test_the_radius_grows_over_the_ramp(kind: type[Defense], model: Recorder, images: Tensor) -> None:
    """Half-way up the ramp it is half of eps, with a step to match; from its end on, all of it."""

    def last_batch(defense: Defense, progress: float) -> Tensor:
        defense(model, images, LABELS, FixedTuples(), seeded(), progress)
        return model.seen[-1]

    ramped = kind(EPS, 3, ramp=0.8)
    assert torch.equal(last_batch(ramped, 0.0), images)
    for progress, share in ((0.4, 0.5), (0.8, 1.0), (1.0, 1.0)):
        torch.testing.assert_close(last_batch(ramped, progress), last_batch(kind(share * EPS, 3), 0.0))
    stepped = kind(EPS, 3, step_size=0.04, ramp=0.5)
    torch.testing.assert_close(last_batch(stepped, 0.25), last_batch(kind(EPS / 2, 3, step_size=0.02), 1.0))


@pytest.mark.parametrize("kind", [Joint, Trades])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"eps": 8}, "eps is 8; .*perhaps 8/255"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"step_size": -1}, "step_size is -1; it must be above 0"),
    ],
)
def test_settings_that_make_no_sense(kind: type[Defense], given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(**given)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Joint(ramp=2), "ramp is 2; it must lie between 0 and 1"),
        (lambda: Joint(targets=[]), "targets is an empty list; it must name at least one role"),
        (
            lambda: Joint(targets=["anchor", "anchor"]),
            r"targets is \['anchor', 'anchor'\]; it must list each role once",
        ),
        (lambda: Joint(targets=["ancor"]), "targets 'ancor' is unknown; did you mean 'anchor'"),
        (lambda: Joint(remine="eech"), "remine 'eech' is unknown; did you mean 'each'"),
        (lambda: Trades(ramp=-0.1), "ramp is -0.1; it must lie between 0 and 1"),
        (lambda: Trades(beta=-1), "beta is -1; it must be at least 0"),
        (lambda: FARE(natural=1), "natural is 1; it must be at least 0 and below 1"),
        (lambda: FARE(natural=-0.1), "natural is -0.1; it must be at least 0 and below 1"),
    ],
)
def test_settings_of_one_defence(make: Callable[[], Defense], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("kind", [Joint, Trades])
def test_adversarial_scores_select_an_epoch(kind: type[Defense]) -> None:
    assert kind().score({"natural": 0.9, "adversarial": 0.1}) == 0.1
