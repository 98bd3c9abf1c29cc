"""The perturbed image and the loss of robust and single_step by hand; joint and nearest with losses on the batch."""

from collections.abc import Callable

import pytest
import torch
from test_tuple_defenses import LABELS, ONE, FixedTuples, Line, on_line
from torch import nn

from dml.attacks.balls import Linf
from dml.defenses.adversarial import Last
from dml.defenses.base import Defense
from dml.defenses.joint import Joint
from dml.defenses.nearest import Nearest
from dml.defenses.robust import Robust
from dml.defenses.single_step import SingleStep
from dml.defenses.visual_phish_net import VisualPhishNet
from dml.losses.base import BatchLoss
from dml.losses.miners.base import Tuples
from dml.losses.multi_similarity import MultiSimilarity
from dml.losses.proxy_anchor import ProxyAnchor
from dml.models.embedder import build

SIGN = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64).view(3, 1, 1)  # of the weights (1, -2, 0.5) of Line
REACH = 3.5  # their absolute sum: how far a step of 1 along SIGN moves an embedding


@pytest.mark.parametrize(
    ("steps", "step_size", "moved", "ahead"),
    [
        (1, 0.01, 0.002 + 0.01 * SIGN, 0.034),  # the start has w . delta = -0.001, and each step adds 0.035
        (3, 0.01, 0.002 + 0.03 * SIGN, 0.104),
        (1, None, 0.2 * SIGN, 0.7),  # a step of 2 eps ends in the corner of the ball
    ],
)
def test_robust_moves_the_positive_away_from_its_anchor(
    steps: int,
    step_size: float | None,
    moved: torch.Tensor,
    ahead: float,
    generator: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a = 0, p = 0.3 and n = -0.2, PGD climbs |p - a|, so along the weights; the loss is p - a - |a - n| + 3."""
    monkeypatch.setattr(Linf, "start", lambda ball, images, generator: images + 0.002)
    model, images = Line().train(), on_line(0.0, 0.3, -0.2)
    defense = Robust(0.2, steps, "positive", step_size)
    loss = defense(model, images, torch.tensor([0, 0, 1]), FixedTuples(ONE), generator)
    clean, perturbed = model.trained
    assert torch.equal(clean, images)
    torch.testing.assert_close(perturbed, (images[1] + moved)[None])
    torch.testing.assert_close(loss, torch.tensor([0.3 + ahead - 0.2 + 3], dtype=torch.float64))


def test_one_step_from_wide_noise_is_not_projected_back(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N-FGSM: noise of at most 2 eps, then one step of eps along the sign, and only [0, 1] holds it."""
    monkeypatch.setattr(torch, "rand", lambda shape, generator, device: torch.full(shape, 0.95))  # .9 of the width
    model, images = Line().train(), on_line(0.0, 0.3, -0.2)
    Robust(0.1, 1, "positive", 0.1, noise=2)(model, images, torch.tensor([0, 0, 1]), FixedTuples(ONE), generator)
    wide = (images[1] + 0.9 * 0.2 + 0.1 * SIGN).clamp(0, 1)
    torch.testing.assert_close(model.trained[1], wide[None], atol=1e-7, rtol=0)
    assert (wide - images[1]).max() > 0.25
    with pytest.raises(ValueError, match="noise is 0; it must be above 0"):
        Robust(noise=0)


def test_one_step_from_the_perturbation_of_the_step_before(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot's image has changed. A step of half the radius adds up over steps, and the ball holds the sum."""
    monkeypatch.setattr(Linf, "start", lambda ball, images, generator: images.clone())
    defense, tuples, labels = Robust(0.1, 1, "positive", 0.05, noise="last"), FixedTuples(ONE), torch.tensor([0, 0, 1])
    moved = []
    for place in (0.3, 0.5, 0.4):
        model, images = Line().train(), on_line(0.0, place, -0.2)
        defense(model, images, labels, tuples, generator)
        moved.append(model.trained[1][0] - images[1])
    for change, length in zip(moved, (0.05, 0.1, 0.1), strict=True):
        torch.testing.assert_close(change, length * SIGN, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="noise 'lats' is unknown; did you mean 'last'"):
        Robust(noise="lats")


def test_slots_beyond_those_of_the_step_before_begin_at_random(generator: torch.Generator) -> None:
    images = torch.rand(4, 3, 2, 2, generator=generator)
    last, again = torch.full((3, 3, 2, 2), 0.5), lambda: torch.Generator().manual_seed(3)
    begun = Last(0.1, last).start(images, generator)
    torch.testing.assert_close(begun[:3], (images[:3] + 0.1).clamp(0, 1), atol=1e-6, rtol=0)
    assert 0 < (begun[3] - images[3]).abs().max() <= 0.1
    assert torch.equal(Last(0.1, torch.empty(0, 1, 1, 1)).start(images, again()), Linf(0.1).start(images, again()))
    fewer = Last(0.1, last).start(images[:2], generator)
    torch.testing.assert_close(fewer, begun[:2])


def test_a_checkpoint_holds_the_perturbations_of_the_step_before(generator: torch.Generator) -> None:
    first, second = (Robust(0.1, 1, "positive", 0.05, noise="last") for _ in range(2))
    images, labels = on_line(0.0, 0.3, -0.2), torch.tensor([0, 0, 1])
    first(Line().train(), images, labels, FixedTuples(ONE), generator)
    second.load_state_dict(first.state_dict())
    (batch,) = first.carried
    assert torch.equal(second.carried[batch], first.carried[batch])
    assert first.carried[batch].abs().max() > 0
    plain = Robust(0.1, 1, "positive", 0.05)
    plain(Line().train(), images, labels, FixedTuples(ONE), generator)
    assert not plain.carried


def test_each_role_begins_with_its_own_perturbations(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive moves away from the anchor, the negative towards it: what one did is no start for the other."""
    monkeypatch.setattr(Linf, "start", lambda ball, images, generator: images.clone())
    images, labels, last = on_line(0.0, 0.3, -0.2), torch.tensor([0, 0, 1]), []
    for target in ("positive", "negative", ["positive", "negative"]):
        defense = Robust(0.1, 1, target, 0.05, noise="last")
        for _ in range(2):
            model = Line().train()
            defense(model, images, labels, FixedTuples(ONE), generator)
        last.append([trained[0] for trained in model.trained[1:]])
    torch.testing.assert_close(last[2], [last[0][0], last[1][0]])


def test_an_image_in_several_tuples_moves_once_where_its_perturbation_is_shared(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """p = 0.3 is the positive of a = 0, 0.1 and 0.5: two push it right and one left, so together right."""
    monkeypatch.setattr(Linf, "start", lambda ball, images, generator: images)
    images, labels = on_line(0.0, 0.1, 0.5, 0.3, -0.2, 0.9), torch.tensor([0, 0, 0, 0, 1, 0])
    tuples = Tuples(torch.tensor([0, 1, 2, 3]), torch.tensor([3, 3, 3, 5]), torch.tensor([4, 4, 4, 4]))
    away = torch.tensor([0.3, 0.2, 0.2, 0.6], dtype=torch.float64)  # of the positive from its anchor
    others = torch.tensor([0.2, 0.3, 0.7, 0.5], dtype=torch.float64)  # of the negative
    way = 0.01 * REACH
    for scope, count, moved in (("slot", 4, [way, way, way, way]), ("image", 2, [way, way, -way, way])):
        model = Line().train()
        loss = Robust(0.2, 1, "positive", 0.01, scope=scope)(model, images, labels, FixedTuples(tuples), generator)
        assert len(model.trained[1]) == count, "perturbed images"
        torch.testing.assert_close(loss, away + torch.tensor(moved, dtype=torch.float64) - others + 3)


def test_single_step_moves_half_of_the_anchors_by_the_gradient_of_the_loss() -> None:
    """The first anchor flees its positive on the right to the left, the second the other way; the negatives attract."""
    images, eps, seen = on_line(0.0, 0.3, -0.2, 0.1, -0.1, 0.6), 0.1, set()
    tuples = FixedTuples(Tuples(torch.tensor([0, 3]), torch.tensor([1, 4]), torch.tensor([2, 5])))
    clean_losses = torch.tensor([0.3 - 0.2 + 3, 0.2 - 0.5 + 3], dtype=torch.float64)
    for seed in range(8):
        draw = torch.Generator().manual_seed(seed)
        radius = float(nn.init.trunc_normal_(torch.empty(()), 0.0, eps / 2, 0.0, eps, generator=draw))
        half = int(torch.randperm(2, generator=draw)[0])
        model = Line().train()
        loss = SingleStep(eps)(model, images, LABELS, tuples, torch.Generator().manual_seed(seed))
        clean, perturbed = model.trained
        assert torch.equal(clean, images)
        torch.testing.assert_close(perturbed, images[[3 * half]] + (-1, 1)[half] * radius * SIGN)
        way = REACH * radius  # of the anchor: away from its positive, and towards its negative or past it
        by_hand = clean_losses.clone()
        by_hand[half] = (0.3 + way - abs(0.2 - way) + 3, 0.2 + way - abs(0.5 - way) + 3)[half]
        torch.testing.assert_close(loss, by_hand)
        seen.add(half)
    assert seen == {0, 1}


def test_visual_phish_net_moves_anchors_whose_tuples_cost_nothing() -> None:
    """Nearer to its positive than to its negative by more than the margin: single_step leaves such an anchor alone."""
    images, eps, radii = on_line(0.0, 0.1, -0.9, 0.0, -0.1, 0.9), 0.1, []
    tuples = Tuples(torch.tensor([0, 3]), torch.tensor([1, 4]), torch.tensor([2, 5]))
    for seed in range(200):
        loss, model = FixedTuples(tuples, margin=0.5), Line().train()
        values = VisualPhishNet(eps)(model, images, LABELS, loss, torch.Generator().manual_seed(seed))
        clean, perturbed = model.trained
        assert torch.equal(clean, images)
        moved = perturbed[0] - images[0]
        radius = float(moved.abs().max())
        # The first flees its positive, to the left, and its twin to the right; both have their negative ahead.
        assert moved.sign().equal(SIGN.expand_as(moved)) or moved.sign().equal(-SIGN.expand_as(moved))
        torch.testing.assert_close(moved.abs(), torch.full_like(moved, radius))
        way = REACH * radius
        half = int(torch.sign(moved[0, 0, 0]) > 0)  # which of the two
        by_hand = torch.zeros(2, dtype=torch.float64)
        by_hand[half] = max(0.0, 0.1 + way - abs(0.9 - way) + 0.5)
        torch.testing.assert_close(values, by_hand, atol=1e-6, rtol=0)
        still = Line().train()
        SingleStep(eps)(still, images, LABELS, loss, torch.Generator().manual_seed(seed))
        assert torch.equal(still.trained[1][0], images[0])
        radii.append(radius / eps)
    shares = torch.tensor(radii)
    assert 0.3 <= shares.min() < 0.33
    assert 0.97 < shares.max() <= 1
    assert shares.mean() == pytest.approx(0.65, abs=0.04)


def test_visual_phish_net_needs_tuples(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="perturbs the anchors of tuples; ProxyAnchor costs whole queries: use single"):
        VisualPhishNet()(Line().train(), on_line(0.0, 0.1), LABELS[:2], ProxyAnchor(3, 8), generator)


@pytest.mark.parametrize("loss", [MultiSimilarity, ProxyAnchor])
@pytest.mark.parametrize(
    "make", [lambda: Joint(0.05, 2), lambda: Nearest(0.05, 2, natural=1.0)], ids=["joint", "nearest"]
)
def test_joint_and_nearest_train_with_losses_on_the_batch(
    make: Callable[[], Defense], loss: type[BatchLoss], generator: torch.Generator
) -> None:
    torch.manual_seed(0)
    model, metric, images = build("conv4", 8, seed=0).train(), loss(3, 8).train(), torch.rand(6, 3, 16, 16)
    parameters = [*model.parameters(), *metric.parameters()]
    before = [parameter.detach().clone() for parameter in parameters]
    values = make()(model, images, LABELS, metric, generator)
    assert values.shape == (6,)
    values.mean().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in parameters)
    torch.optim.SGD(parameters, lr=0.1).step()
    assert all(bool(parameter.isfinite().all()) for parameter in parameters)
    assert not torch.equal(before[0], parameters[0]), "the first layer"
    assert not torch.equal(before[-1], parameters[-1]), "the head, or the proxies"
