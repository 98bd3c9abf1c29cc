"""Defences that perturb whole tuples: what their adversary raises, step by step, and what reaches the gradient."""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from dml.attacks.balls import Linf
from dml.data.base import Split
from dml.defenses.act import ACT
from dml.defenses.amd import AMD
from dml.defenses.base import Defense
from dml.defenses.ca_tride import CATRIDE, anchor_cost, candidates_cost, peak
from dml.defenses.hardness import Hardness
from dml.defenses.standard import Standard
from dml.losses.base import BatchLoss, difference, distance
from dml.losses.miners import MINERS
from dml.losses.miners.base import Tuples
from dml.losses.triplet import Triplet
from dml.models.embedder import build
from dml.training.checkpoint import Checkpoint
from dml.training.loop import fit
from dml.training.schedule import Schedule

EPS = 0.1
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
FIXED = Tuples(torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5]), torch.tensor([2, 4, 2]))  # row 2 in three places
ALL, CANDIDATES, ANCHOR = ("anchor", "positive", "negative"), ("positive", "negative"), ("anchor",)


class Recorder(nn.Module):
    """A linear embedder that remembers its batches in training mode, in PGD, and in evaluation mode outside of it."""

    def __init__(self, normalized: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 4 * 4, 8)
        self.normalized = normalized
        self.trained: list[Tensor] = []
        self.attacked: list[Tensor] = []
        self.evaluated: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        seen = self.trained if self.training else self.attacked if images.requires_grad else self.evaluated
        seen.append(images.detach().clone())
        embeddings = self.linear(images.flatten(1))
        return nn.functional.normalize(embeddings, dim=1) if self.normalized else embeddings


class Line(Recorder):
    """Images of one pixel -> a point of the line, weights . colours."""

    def __init__(self) -> None:
        super().__init__(normalized=False)
        self.linear = nn.Linear(3, 1, bias=False).double()
        self.linear.weight.data = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)


class FixedTuples(Triplet):
    """A triplet loss whose miner always gives the same tuples."""

    def __init__(self, tuples: Tuples = FIXED, margin: float = 3.0) -> None:
        super().__init__(12, 8, miner="random", margin=margin)
        self.tuples = tuples
        self.shown: list[Tensor] = []

    def mine(self, embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tuples:
        self.shown.append(embeddings)
        return self.tuples


class Whole(BatchLoss):
    """A loss without tuples."""

    def forward(
        self, queries: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor, own: Tensor
    ) -> Tensor:
        return queries.sum(1)


def anchors_turn(defense: CATRIDE) -> CATRIDE:
    defense.turn.fill_(1)
    return defense


CASES: list[tuple[Callable[..., Defense], tuple[str, ...]]] = [
    (ACT, CANDIDATES),
    (AMD, ALL),
    (Hardness, ALL),
    (partial(Hardness, destination="semi_hard"), ALL),
    (CATRIDE, CANDIDATES),
    (lambda *given: anchors_turn(CATRIDE(*given)), ANCHOR),
]
NAMES = ["act", "amd", "hardness lga", "hardness semi-hard", "ca-tride candidates", "ca-tride anchor"]
every = pytest.mark.parametrize(("make", "roles"), CASES, ids=NAMES)


@pytest.fixture
def model() -> Recorder:
    torch.manual_seed(0)
    return Recorder().train()


@pytest.fixture
def images() -> Tensor:
    """Positives near their anchors: the easy tuples of a model that has learnt something."""
    drawn = 0.2 + 0.6 * torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    drawn[[1, 3, 5]] = drawn[[0, 2, 4]] + 0.03 * (drawn[[1, 3, 5]] - 0.5)
    return drawn


def stacked(images: Tensor, roles: tuple[str, ...], tuples: Tuples = FIXED) -> Tensor:
    return torch.cat([images[getattr(tuples, role)] for role in roles])


def by_hand(model: Recorder, images: Tensor, perturbed: Tensor, roles: tuple[str, ...]) -> dict[str, Tensor]:
    """Embeddings by role: the perturbed ones, else clean ones."""
    clean = dict(zip(ALL, FIXED.pick(model(images)), strict=True))
    return clean | dict(zip(roles, model(perturbed).chunk(len(roles)), strict=True))


@every
def test_perturbed_images_replace_their_roles(
    make: Callable[..., Defense], roles: tuple[str, ...], model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    loss = FixedTuples()
    values = make(EPS, 5)(model, images, LABELS, loss, generator)
    clean, perturbed = model.trained
    assert torch.equal(clean, images), "the batch itself stays clean"
    assert not loss.shown[0].requires_grad
    torch.testing.assert_close(loss.shown[0], model(images).detach(), msg="mined on the clean batch")
    original = stacked(images, roles)
    assert perturbed.shape == original.shape
    assert ((perturbed - original).abs().amax((1, 2, 3)) > 0).all(), "every slot moves"
    assert (perturbed - original).abs().max() <= EPS
    torch.testing.assert_close(values, loss(**by_hand(model, images, perturbed, roles)))


@every
def test_the_gradient_reaches_what_the_loss_costs(
    make: Callable[..., Defense], roles: tuple[str, ...], model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    loss = FixedTuples()
    make(EPS, 2)(model, images, LABELS, loss, generator).mean().backward()
    found = model.linear.weight.grad.clone()
    clean, perturbed = model.trained
    model.zero_grad()
    loss(**by_hand(model, clean, perturbed, roles)).mean().backward()
    torch.testing.assert_close(found, model.linear.weight.grad)


@every
def test_images_stay_in_the_unit_box(
    make: Callable[..., Defense], roles: tuple[str, ...], model: Recorder, generator: torch.Generator
) -> None:
    images = torch.rand(6, 3, 4, 4, generator=generator).round()
    make(EPS, 3)(model, images, LABELS, FixedTuples(), generator)
    perturbed = model.trained[1]
    assert perturbed.min() >= 0
    assert perturbed.max() <= 1
    assert (perturbed - stacked(images, roles)).abs().max() <= EPS


@every
def test_an_image_moves_separately_in_every_slot(
    make: Callable[..., Defense], roles: tuple[str, ...], model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    """Row 2 is the anchor of tuple 1, and the negative of tuples 0 and 2."""
    make(EPS, 2)(model, images, LABELS, FixedTuples(), generator)
    rows = torch.cat([getattr(FIXED, role) for role in roles])
    copies = model.trained[1][rows == 2]
    assert len(copies) == {ALL: 3, CANDIDATES: 2, ANCHOR: 1}[roles]
    assert len(torch.unique(copies, dim=0)) == len(copies)


@every
def test_radius_zero_is_standard_training(
    make: Callable[..., Defense], roles: tuple[str, ...], model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    defended = make(0.0, 2)(model, images, LABELS, FixedTuples(), generator)
    torch.testing.assert_close(defended, Standard()(model, images, LABELS, FixedTuples(), generator))


@every
def test_a_seed_decides_the_losses(
    make: Callable[..., Defense], roles: tuple[str, ...], model: Recorder, images: Tensor
) -> None:
    def losses(seed: int) -> Tensor:
        loss = Triplet(3, 8, miner="random", margin=3.0)
        return make(EPS, 2)(model, images, LABELS, loss, torch.Generator().manual_seed(seed))

    assert torch.equal(losses(0), losses(0))
    assert not torch.equal(losses(0), losses(1))


@every
def test_modes_gradients_and_the_global_generator_stay(
    make: Callable[..., Defense], roles: tuple[str, ...], generator: torch.Generator
) -> None:
    model, loss = build("conv4", 8, seed=0).train(), FixedTuples().train()
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    before, rows = torch.get_rng_state(), torch.rand(6, 3, 32, 32, generator=generator)
    values = make(EPS, 2)(model, rows, LABELS, loss, generator)
    assert values.shape == (3,)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training != (module is frozen) for module in [*model.modules(), *loss.modules()])
    assert torch.equal(torch.get_rng_state(), before)


@every
def test_losses_on_whole_queries_are_refused(
    make: Callable[..., Defense], roles: tuple[str, ...], model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    defense = make(EPS, 2)
    words = (
        f"{type(defense).__name__} perturbs the roles of tuples; Whole costs whole queries: "
        "use robust with target 'query', single_step, joint, est, nearest, trades or fare"
    )
    with pytest.raises(ValueError, match=words):
        defense(model, images, LABELS, Whole(3, 8), generator)


def points(model: Recorder, roles: tuple[str, ...], images: Tensor) -> list[tuple[Tensor, ...]]:
    """Embeddings of the roles at every point of PGD, first and last included."""
    model.eval()
    batches = [*model.attacked, model.trained[1]]
    found = [model(batch).detach().chunk(len(roles)) for batch in batches]
    model.train()
    return found


@pytest.fixture
def near_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """PGD starts near the image, at a known point, so that no step meets the edge of the ball."""
    monkeypatch.setattr(Linf, "start", lambda ball, images, generator: images + 0.002)


@pytest.mark.parametrize("normalized", [True, False])
def test_act_draws_positive_and_negative_together_step_by_step(
    normalized: bool, model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    model.normalized = normalized
    ACT(EPS, 12, step_size=0.002)(model, images, LABELS, FixedTuples(), generator)
    apart = torch.stack([distance(*point) for point in points(model, CANDIDATES, images)])
    assert len(apart) == 13
    assert (apart.diff(dim=0) < 0).all()


def on_line(*places: float) -> Tensor:
    """Images of one pixel, (T, 3, 1, 1), at these places of :class:`Line`."""
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    offset = torch.tensor(places, dtype=torch.float64) - 0.5 * weight.sum()
    return (0.5 + offset[:, None] * weight / weight.square().sum()).view(-1, 3, 1, 1)


ONE = Tuples(torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))


@pytest.mark.usefixtures("near_start")
def test_act_on_a_line_closes_the_gap_from_both_sides(generator: torch.Generator) -> None:
    """With n < p, each step takes 2 * step * |w|_1 off p - n."""
    model, images = Line().train(), on_line(0.0, 0.3, -0.2)
    ACT(0.2, 4, step_size=0.01)(model, images, torch.tensor([0, 0, 1]), FixedTuples(ONE), generator)
    apart = torch.cat([distance(*point) for point in points(model, CANDIDATES, images)])
    torch.testing.assert_close(apart, 0.5 - 2 * 0.01 * 3.5 * torch.arange(5, dtype=torch.float64))


@pytest.mark.parametrize("normalized", [True, False])
def test_hardness_rises_to_its_destination_and_stops(
    normalized: bool, model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    model.normalized = normalized
    Hardness(0.05, 40, gamma=0.1, step_size=0.002)(model, images, LABELS, FixedTuples(), generator)
    reached = torch.stack([difference(*point) for point in points(model, ALL, images)])
    change, below = reached.diff(dim=0), reached[:-1] < -0.1
    assert below[0].all()
    assert (change[below] > 0).all(), "each step makes a tuple harder, until it is as hard as asked for"
    assert (change[~below] == 0).all(), "and then none does"
    assert (reached[-1] >= -0.1).all()
    assert (reached[-1] + 0.1 < change.amax(0)).all(), "no further beyond than one step"


@pytest.mark.usefixtures("near_start")
def test_hardness_on_a_line_takes_the_steps_that_its_destination_needs(generator: torch.Generator) -> None:
    """With n < a < p, H = p + n - 2a, and each step adds 4 * step * |w|_1 = 0.07: from -0.5 to beyond -0.2 in five."""
    model, images = Line().train(), on_line(-0.25, 0.1, -1.1)
    Hardness(0.2, 8, step_size=0.005)(model, images, torch.tensor([0, 0, 1]), FixedTuples(ONE), generator)
    reached = torch.cat([difference(*point) for point in points(model, ALL, images)])
    torch.testing.assert_close(reached, -0.5 + 0.07 * torch.arange(9, dtype=torch.float64).clamp(max=5))


@pytest.mark.usefixtures("near_start")
def test_amd_on_a_line_makes_a_tuple_harder_with_every_step(generator: torch.Generator) -> None:
    """As hardness manipulation, but on beyond any destination, and where the tuple costs nothing under the hinge."""
    model, images, easy = Line().train(), on_line(-0.25, 0.1, -1.1), FixedTuples(ONE, margin=0.1)
    loss = AMD(0.2, 8, step_size=0.005)(model, images, torch.tensor([0, 0, 1]), easy, generator)
    reached = torch.cat([difference(*point) for point in points(model, ALL, images)])
    torch.testing.assert_close(reached, -0.5 + 0.07 * torch.arange(9, dtype=torch.float64))
    torch.testing.assert_close(loss, reached[-1:] + 0.1)


def test_hardness_leaves_tuples_that_are_harder_than_their_destination(
    model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    """The gradient is zero there, its sign too: they stay at their random start, bit for bit."""
    Hardness(EPS, 5, gamma=2.0)(model, images, LABELS, FixedTuples(), torch.Generator().manual_seed(3))
    start = Linf(EPS).start(stacked(images, ALL), torch.Generator().manual_seed(3))
    assert torch.equal(model.attacked[0], start)
    assert torch.equal(model.trained[1], start)


@pytest.mark.parametrize(("last", "goal"), [(0.2, -0.2), (7.0, -0.2), (0.05, -0.05), (0.0, 0.0)])
@pytest.mark.usefixtures("near_start")
def test_the_gradual_adversary_asks_for_more_as_the_loss_falls(
    last: float, goal: float, generator: torch.Generator
) -> None:
    model, images = Line().train(), on_line(-0.25, 0.1, -1.1)
    defense = Hardness(0.2, 60, step_size=0.001)
    assert defense.last == pytest.approx(0.2), "at first the loss counts as high"
    defense.last.fill_(last)
    defense(model, images, torch.tensor([0, 0, 1]), FixedTuples(ONE), generator)
    reached = torch.cat([difference(*point) for point in points(model, ALL, images)])
    steps = math.ceil((goal + 0.5) / 0.014)
    assert float(reached[-1]) == pytest.approx(-0.5 + 0.014 * steps, abs=1e-6)


def test_gamma_and_ceiling_scale_the_gradual_adversary() -> None:
    defense = Hardness(gamma=0.6, ceiling=2.0)
    goals = []
    for last in (5.0, 2.0, 1.0, -1.0):
        defense.last.fill_(last)
        goals.append(float(defense._goal(torch.empty(0), torch.empty(0), FIXED, torch.Generator())))
    assert goals == pytest.approx([-0.6, -0.6, -0.3, 0.0])


def test_the_last_loss_is_kept_in_training_only(model: Recorder, images: Tensor, generator: torch.Generator) -> None:
    defense = Hardness(EPS, 2)
    defense.eval()
    defense(model, images, LABELS, FixedTuples(), generator)
    assert defense.last == pytest.approx(0.2)
    defense.train()
    values = defense(model, images, LABELS, FixedTuples(), generator)
    torch.testing.assert_close(defense.last, values.mean().detach())
    kept = Hardness(EPS, 2)
    kept.load_state_dict(defense.state_dict())
    assert kept.last == defense.last
    with_ics = Hardness(EPS, 2, ics=10.0)
    values = with_ics(model, images, LABELS, FixedTuples(Tuples(*(rows[:1] for rows in FIXED))), generator)
    assert with_ics.last < values.mean(), "the term is no part of it"


@pytest.mark.usefixtures("near_start")
def test_a_miner_as_destination_is_matched_by_anchor(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    """Three tuples with H = -0.5, in another order than the miner's, which gives their anchors three destinations."""
    images, model = on_line(-0.25, -0.25, -0.25, 0.1, -1.1, -0.95, -0.65, -1.3), Line().train()
    mined = Tuples(
        torch.arange(4), torch.tensor([3, 3, 3, 4]), torch.tensor([5, 6, 7, 0])
    )  # -0.35, -0.05, -0.7 of ours
    shown = []

    def given(embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tuples:
        shown.append(embeddings)
        return mined

    module = ModuleType("given_miner")
    module.given = given
    monkeypatch.setitem(sys.modules, "given_miner", module)
    monkeypatch.setitem(MINERS, "given", "given_miner:given")
    loss = FixedTuples(Tuples(torch.tensor([2, 0, 1]), torch.tensor([3, 3, 3]), torch.tensor([4, 4, 4])))
    defense = Hardness(0.2, 8, destination="given", step_size=0.005)
    defense(model, images, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), loss, generator)
    reached = torch.stack([difference(*point) for point in points(model, ALL, images)])
    steps = torch.arange(9, dtype=torch.float64)[:, None].minimum(torch.tensor([0.0, 3.0, 7.0]))
    torch.testing.assert_close(reached, -0.5 + 0.07 * steps)
    torch.testing.assert_close(shown[0], model(images).detach(), msg="mined on the same clean embeddings")


def test_the_intra_class_term_by_hand(model: Recorder, images: Tensor) -> None:
    """Its gradient reaches the perturbed anchor, and the clean anchor and positive too."""
    images[3] = 1 - images[3]  # farther than any perturbed anchor: tuple 1 costs nothing more

    def run(ics: float) -> tuple[Tensor, Tensor]:
        model.trained.clear()
        model.zero_grad()
        values = Hardness(EPS, 3, ics=ics)(model, images, LABELS, FixedTuples(), torch.Generator().manual_seed(0))
        values.mean().backward()
        return values.detach(), model.linear.weight.grad.clone()

    plain, _ = run(0.0)
    values, found = run(0.5)
    clean, perturbed = model.trained
    model.zero_grad()
    roles = by_hand(model, clean, perturbed, ALL)
    anchor, positive, _ = FIXED.pick(model(clean))
    term = (distance(anchor, roles["anchor"]) - distance(anchor, positive)).clamp_min(0)
    assert ((term > 0) == torch.tensor([True, False, True])).all()
    torch.testing.assert_close(values - plain, 0.5 * term)
    (FixedTuples()(**roles) + 0.5 * term).mean().backward()
    torch.testing.assert_close(found, model.linear.weight.grad)


def test_peak_weights_distances_towards_the_largest() -> None:
    distances = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(peak(distances, 0.0), torch.tensor(1.5))
    e = math.exp(-2.0)
    torch.testing.assert_close(peak(distances, 2.0), torch.tensor((1 * e + 2) / (e + 1)))
    torch.testing.assert_close(peak(distances, 100.0), torch.tensor(2.0))


def test_costs_of_ca_tride_by_hand() -> None:
    """Two tuples on a line, lam 0: W is the mean."""
    anchor, home = torch.tensor([[0.0], [0.0]]), torch.tensor([[0.1], [-0.3]])
    positive, negative = torch.tensor([[0.1], [0.3]]), torch.tensor([[0.5], [-0.9]])  # W 0.2 and 0.7
    assert float(candidates_cost(anchor, positive, negative, 0.0)) == pytest.approx(0.5)
    assert float(candidates_cost(anchor, negative, positive, 0.0)) == 0
    cost = anchor_cost(anchor, positive, negative, home, 0.0)
    assert float(cost) == pytest.approx(0 + math.exp(-0.5) * (0.5 - 0.2))
    cost = anchor_cost(anchor, negative, positive, home, 0.0)
    assert float(cost) == pytest.approx(0.5 + 1 * 0, abs=1e-6), "the nearest half is at 0.1, the shift 0.2"


@pytest.mark.parametrize(("home", "change"), [(0.1, 0.0), (-0.1, -2.0)])
def test_the_weight_of_the_anchor_cost_has_no_gradient(home: float, change: float) -> None:
    """With p < a < n on a line, a step to the right takes 1 off d(a, n), and moves the anchor to or from its home."""
    anchor = torch.tensor([[0.0]], requires_grad=True)
    cost = anchor_cost(anchor, torch.tensor([[-0.2]]), torch.tensor([[0.7]]), torch.tensor([[home]]), 10.0)
    (gradient,) = torch.autograd.grad(cost, anchor)
    assert float(gradient) == pytest.approx(change * math.exp(-0.5))


def test_candidates_lower_their_cost_until_the_batch_collapses_no_more(
    model: Recorder, images: Tensor, generator: torch.Generator
) -> None:
    CATRIDE(EPS, 60, lam=2.0, step_size=0.002)(model, images, LABELS, FixedTuples(), generator)
    found = points(model, CANDIDATES, images)
    costs = torch.stack([candidates_cost(model(images).detach()[FIXED.anchor], *point, 2.0) for point in found])
    moving = costs[:-1] > 0
    assert moving[0]
    assert costs[-1] == 0
    assert (costs.diff()[moving] < 0).all()
    still = torch.cat([*model.attacked, model.trained[1]]).unflatten(0, (61, 6))[int(moving.sum()) :]
    assert (still == still[0]).all()


def test_anchors_lower_their_cost_step_by_step(model: Recorder, images: Tensor, generator: torch.Generator) -> None:
    anchors_turn(CATRIDE(EPS, 10, lam=2.0, step_size=0.002))(model, images, LABELS, FixedTuples(), generator)
    assert torch.equal(model.evaluated[0], images), "the shift is measured in evaluation mode"
    found = points(model, ANCHOR, images)
    home, positive, negative = FIXED.pick(model(images).detach())
    costs = [anchor_cost(anchor, positive, negative, home, 2.0) for (anchor,) in found]
    assert len(costs) == 11
    assert (torch.stack(costs).diff() < 0).all()


def test_ca_tride_alternates_in_training_only(model: Recorder, images: Tensor, generator: torch.Generator) -> None:
    defense = CATRIDE(EPS, 2)

    def slots() -> int:
        defense(model, images, LABELS, FixedTuples(), generator)
        return len(model.trained[-1])

    assert [slots() for _ in range(4)] == [6, 3, 6, 3]
    slots()
    assert defense.state_dict()["turn"] == 1
    defense.eval()
    assert [slots(), slots()] == [3, 3]


def test_the_step_of_ca_tride_grows_with_progress(model: Recorder, images: Tensor) -> None:
    def last_batch(progress: float, step: float) -> Tensor:
        given = torch.Generator().manual_seed(0)
        CATRIDE(EPS, 3, step_size=step)(model, images, LABELS, FixedTuples(), given, progress)
        return model.trained[-1]

    start = Linf(EPS).start(stacked(images, CANDIDATES), torch.Generator().manual_seed(0))
    assert torch.equal(last_batch(0.0, 0.02), start)
    assert torch.equal(last_batch(0.25, 0.02), last_batch(1.0, 0.005))
    assert not torch.equal(last_batch(0.25, 0.02), last_batch(0.5, 0.02))


@pytest.mark.parametrize("make", [ACT, AMD, Hardness])
def test_the_radius_grows_over_the_ramp(make: type[ACT | AMD | Hardness], model: Recorder, images: Tensor) -> None:
    def last_batch(defense: Defense, progress: float) -> Tensor:
        defense(model, images, LABELS, FixedTuples(), torch.Generator().manual_seed(0), progress)
        return model.trained[-1]

    ramped = make(EPS, 3, ramp=0.8)
    assert torch.equal(last_batch(ramped, 0.0), stacked(images, CANDIDATES if make is ACT else ALL))
    for progress, share in ((0.4, 0.5), (0.8, 1.0), (1.0, 1.0)):
        assert torch.equal(last_batch(ramped, progress), last_batch(make(share * EPS, 3), 0.0))


@pytest.mark.parametrize("make", [CATRIDE, partial(Hardness, ics=0.5)], ids=["ca-tride", "hardness"])
def test_a_killed_training_resumes_with_the_same_weights(
    make: Callable[[float, int], Defense], toy_split: Split, tmp_path: Path
) -> None:
    """One batch per epoch, so that the training is killed between the two turns of CA-TRIDE."""

    def train(killed_after: int, file: Path) -> dict[str, Tensor]:
        done = []

        def validate(model: nn.Module) -> dict[str, float]:
            done.append(0)
            if len(done) > killed_after:
                raise KeyboardInterrupt
            return {"natural": 0.0, "adversarial": 0.0}

        model = build("conv4", 8, seed=0)
        loss, schedule = Triplet(6, 8, miner="random"), Schedule(epochs=4, batches=1, classes=3, images_per_class=2)
        given = {"checkpoint": Checkpoint(file, "key"), "report": lambda line: None, "timing": lambda line: None}
        fit(model, toy_split, loss, make(0.05, 2), schedule, seed=0, validate=validate, **given)
        return model.state_dict()

    whole = train(9, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(1, tmp_path / "killed")
    resumed = train(9, tmp_path / "killed")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ACT(8), "eps is 8; .*perhaps 8/255"),
        (lambda: ACT(EPS, 0), "steps is 0; it must be at least 1"),
        (lambda: Hardness(EPS, 2, step_size=-1), "step_size is -1; it must be above 0"),
        (lambda: CATRIDE(EPS, 2, step_size=0), "step_size is 0; it must be above 0"),
        (lambda: ACT(EPS, 2, ramp=2), "ramp is 2; it must lie between 0 and 1"),
        (lambda: Hardness(destination="semihard"), "destination 'semihard' is unknown; did you mean 'semi_hard'"),
        (lambda: Hardness(ics=-0.5), "ics is -0.5; it must be at least 0"),
        (lambda: Hardness(gamma=-1), "gamma is -1; it must be at least 0"),
        (lambda: Hardness(ceiling=0), "ceiling is 0; it must be above 0"),
        (lambda: CATRIDE(lam=-1), "lam is -1; it must be at least 0"),
    ],
)
def test_settings_that_make_no_sense(make: Callable[[], Defense], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@every
def test_the_epoch_is_selected_by_adversarial_recall(make: Callable[..., Defense], roles: tuple[str, ...]) -> None:
    assert make(EPS, 2).score({"natural": 0.9, "adversarial": 0.1}) == 0.1
