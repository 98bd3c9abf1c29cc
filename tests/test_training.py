"""The training loop: it learns, repeats itself to the byte, resumes after a kill, and picks the epoch it must."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dml.common.randomness import seeded_global
from dml.data.base import Split
from dml.data.transforms import Augmentation
from dml.defenses.base import Defense
from dml.defenses.robust import Robust
from dml.defenses.standard import Standard
from dml.losses.base import Loss
from dml.losses.miners import MINERS
from dml.losses.pml import PML
from dml.losses.triplet import Triplet
from dml.models import bfloat16
from dml.models.embedder import Embedder, build
from dml.models.weights import save
from dml.training.checkpoint import Checkpoint
from dml.training.loop import History, fit
from dml.training.schedule import Schedule
from dml.training.selection import validator

SCHEDULE = Schedule(epochs=3, batches=4, classes=4, images_per_class=3, learning_rate=1e-2, averaging=0.5, shift=1)
Validate = Callable[[nn.Module], dict[str, float]]


def triplet() -> Loss:
    return Triplet(6, 8, miner="distance_weighted")


def proxies(seed: int = 0) -> Loss:
    """A loss with parameters."""
    with seeded_global(seed, "loss"):
        return PML(6, 8, name="ProxyAnchorLoss")


class Counting(Standard):
    """A defence that keeps the number of its steps and scales the loss by it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, *given: Any) -> Tensor:
        self.steps += 1
        return super().forward(*given) * self.steps


def train(split: Split, *, seed: int = 0, **changes: Any) -> tuple[Embedder, History]:
    model = build("conv4", 8, seed=seed, statistics=split.statistics())
    settings = {
        "loss": triplet(),
        "defense": Standard(),
        "schedule": SCHEDULE,
        "validate": validator(split, queries=6, eps=0.03, steps=2, seed=seed),
        "report": lambda line: None,
        "timing": lambda line: None,
    } | changes
    return model, fit(model, split, seed=seed, **settings)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    values = ([*module.parameters(), *module.buffers()] for module in (first, second))
    return all(torch.equal(a, b) for a, b in zip(*values, strict=True))


def killed_after(epochs: int, validate: Validate) -> Validate:
    """A validation that is interrupted after some epochs."""
    calls = []

    def interrupted(model: nn.Module) -> dict[str, float]:
        calls.append(1)
        if len(calls) > epochs:
            raise KeyboardInterrupt
        return validate(model)

    return interrupted


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path / "state.pt", "key")


def test_training_learns(toy_split: Split) -> None:
    draw = np.random.default_rng(0)  # brightness that says nothing about the class, for the network to see through
    images = toy_split.images * draw.uniform(0.2, 1, (len(toy_split), 1, 1, 1))
    split = Split(images.astype(np.uint8), toy_split.labels, toy_split.class_names)
    model, history = train(split)
    assert history.epochs[-1]["loss"] < 0.8 * history.epochs[0]["loss"]
    assert set(history.epochs[0]) == {"loss", "natural", "adversarial"}, "no times: the pipeline compares histories"
    assert len(history.seconds) == 3
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("defense", [Standard, lambda: Robust(0.03, 2)])
def test_same_seed_same_bytes(defense: Callable[[], Defense], toy_split: Split, tmp_path: Path) -> None:
    first, history = train(toy_split, defense=defense())
    torch.rand(7)  # the global generator has no say
    second, again = train(toy_split, defense=defense())
    other, _ = train(toy_split, defense=defense(), seed=1)
    assert same_weights(first, second)
    assert not same_weights(first, other)
    assert history == again
    save(first, tmp_path / "one")
    save(second, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("loss", "defense"), [(triplet, Standard), (proxies, Counting), (triplet, lambda: Robust(0.03, 1, ramp=0.5))]
)
def test_a_killed_training_resumes_to_the_same_weights_and_report(
    loss: Callable[[], Loss], defense: Callable[[], Defense], toy_split: Split, checkpoint: Checkpoint
) -> None:
    """Parameters of the loss and buffers of the defence included."""
    expected, lines, kept = [], [], [loss(), loss()]
    whole, history = train(toy_split, loss=kept[0], defense=defense(), report=expected.append)
    score = validator(toy_split, queries=6, eps=0.03, steps=2, seed=0)
    with pytest.raises(KeyboardInterrupt):
        train(toy_split, loss=loss(), defense=defense(), checkpoint=checkpoint, validate=killed_after(1, score))
    assert checkpoint.file.exists()
    times: list[str] = []
    resumed, again = train(
        toy_split,
        loss=kept[1],
        defense=defense(),
        checkpoint=checkpoint,
        report=lines.append,
        timing=times.append,
    )
    assert times[0] == "resumed after epoch 1"
    assert lines == expected
    assert same_weights(whole, resumed)
    assert same_weights(*kept)
    assert again == history
    assert len(again.seconds) == 3


def test_the_checkpoint_stays_until_it_is_discarded(toy_split: Split, checkpoint: Checkpoint) -> None:
    """A process that dies between training and saving the weights loses nothing."""
    first, history = train(toy_split, checkpoint=checkpoint)

    def never(model: nn.Module) -> dict[str, float]:
        raise AssertionError("the training has finished")

    second, again = train(toy_split, checkpoint=checkpoint, validate=never)
    assert same_weights(first, second)
    assert not second.training
    assert again == history
    checkpoint.discard()
    checkpoint.discard()
    assert not checkpoint.file.exists()
    with pytest.raises(AssertionError, match="the training has finished"):
        train(toy_split, checkpoint=checkpoint, validate=never)


def test_a_checkpoint_of_another_key_is_not_resumed(toy_split: Split, checkpoint: Checkpoint) -> None:
    train(toy_split, checkpoint=checkpoint)
    other, times = Checkpoint(checkpoint.file, "another key"), []
    assert other.load() is None
    train(toy_split, checkpoint=other, timing=times.append)
    assert "resumed" not in times[0]
    assert checkpoint.load() is None


def test_a_checkpoint_is_replaced_whole(checkpoint: Checkpoint) -> None:
    assert checkpoint.load() is None
    checkpoint.save({"numbers": torch.arange(3), "text": "a"})
    with pytest.raises(AttributeError, match="local"):
        checkpoint.save({"function": lambda: None})
    state = checkpoint.load()
    assert state["text"] == "a"
    assert state["numbers"].tolist() == [0, 1, 2]
    assert [path.name for path in checkpoint.file.parent.iterdir()] == ["state.pt"]


def test_reports_hold_no_times(toy_split: Split, capsys: pytest.CaptureFixture) -> None:
    schedule = replace(SCHEDULE, epochs=2)
    model = build("conv4", 8, seed=0)
    validate = lambda model: {"natural": 0.65, "adversarial": 0.11}  # noqa: E731
    history = fit(model, toy_split, triplet(), Standard(), schedule, seed=0, validate=validate)
    told, timed = capsys.readouterr()
    losses = [epoch["loss"] for epoch in history.epochs]
    assert told.splitlines() == [
        f"epoch {number}/2  loss {loss:.3f}  natural 0.650  adversarial 0.110" for number, loss in enumerate(losses, 1)
    ]
    assert len(timed.splitlines()) == 2
    assert timed.splitlines()[1].endswith(" s, 0:00 left")


def test_the_best_epoch_is_kept_and_the_later_of_equals(toy_split: Split) -> None:
    states = []

    def validate(model: nn.Module) -> dict[str, float]:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"natural": [0.5, 0.5, 0.4][len(states) - 1], "adversarial": len(states)}

    model, history = train(toy_split, validate=validate)
    assert history.chosen == 1
    assert all(torch.equal(value, states[1][name]) for name, value in model.state_dict().items())


def test_the_last_epoch_is_kept_where_that_is_asked_for(toy_split: Split) -> None:
    scores = iter([0.9, 0.5, 0.4])
    history = train(toy_split, keep_last=True, validate=lambda model: {"natural": next(scores), "adversarial": 0.0})[1]
    assert history.chosen == 2


def test_the_defence_selects_the_epoch(toy_split: Split) -> None:
    def validate(model: nn.Module) -> dict[str, float]:
        validate.calls += 1
        return {"natural": float(validate.calls), "adversarial": -float(validate.calls)}

    validate.calls = 0
    assert train(toy_split, validate=validate)[1].chosen == 2
    assert train(toy_split, validate=validate, defense=Robust(0.03, 1))[1].chosen == 0


def test_parameters_of_the_loss_are_trained_and_averaged(toy_split: Split) -> None:
    """With the decay 0 the last parameters are kept; with a decay near 1 the average barely leaves the first step."""
    found = {}
    for averaging in (0.0, 0.999):
        loss = proxies()
        before = loss.loss.proxies.detach().clone()
        train(toy_split, loss=loss, schedule=replace(SCHEDULE, averaging=averaging, learning_rate=0.1))
        found[averaging] = (loss.loss.proxies.detach() - before).norm()
        assert found[averaging] > 0
    assert found[0.999] < 0.5 * found[0.0]


@pytest.mark.parametrize(("rate", "batches"), [("constant", 1), ("one_cycle", 2)])
def test_what_a_loss_learns_may_have_a_rate_of_its_own(rate: str, batches: int, toy_split: Split) -> None:
    """Adam's first step is the rate itself, whatever the gradient."""
    moved: dict[float, list[Tensor]] = {}
    schedule = Schedule(1, batches, 4, 3, learning_rate=1e-4, weight_decay=0.0, rate=rate)
    for own in (0.0, 1e-2):
        loss = proxies()
        start = loss.loss.proxies.detach().clone()
        model, _ = train(toy_split, loss=loss, schedule=replace(schedule, loss_learning_rate=own))
        moved[own] = [(loss.loss.proxies.detach() - start).abs().max(), model.head.weight.detach()]
    torch.testing.assert_close(moved[1e-2][0], 100 * moved[0.0][0], rtol=0.05, atol=0)
    assert torch.equal(moved[1e-2][1], moved[0.0][1]) == (batches == 1), "the model's stays"


def test_a_corrected_average_forgets_what_training_began_with(toy_split: Split) -> None:
    """Its decay is .1 after the first step and grows; at .999 it is the plain average, which barely moves."""
    schedule = replace(SCHEDULE, averaging=0.999, corrected=True)
    assert [schedule.decay(steps) for steps in (0, 1, 8, 10**6)] == [0.1, 2 / 11, 0.5, 0.999]
    assert replace(schedule, corrected=False).decay(0) == 0.999
    found = {}
    for name, averaging, corrected in (("last", 0.0, False), ("plain", 0.999, False), ("corrected", 0.999, True)):
        loss = proxies()
        changed = {"averaging": averaging, "corrected": corrected, "learning_rate": 0.1}
        train(toy_split, loss=loss, schedule=replace(SCHEDULE, **changed))
        found[name] = loss.loss.proxies.detach()
    apart = {name: (found[name] - found["last"]).norm() for name in ("plain", "corrected")}
    assert 0 < apart["corrected"] < 0.7 * apart["plain"]


def test_a_corrected_average_is_the_recursion_that_defines_it(toy_split: Split) -> None:
    weights = []

    class Noted(Standard):
        def forward(self, model: nn.Module, *given: Any) -> Tensor:
            weights.append(model.head.bias.detach().clone())
            return super().forward(model, *given)

    schedule = replace(SCHEDULE, epochs=1, averaging=0.4, corrected=True)
    last, _ = train(toy_split, schedule=replace(schedule, averaging=0.0))
    model, _ = train(toy_split, schedule=schedule, defense=Noted())
    after = [*weights[1:], last.head.bias.detach()]  # of each step
    average = after[0]  # nothing was averaged before
    for steps, current in enumerate(after[1:], start=1):
        decay = min(0.4, (1 + steps) / (10 + steps))
        average = decay * average + (1 - decay) * current
    torch.testing.assert_close(model.head.bias.detach(), average)


def test_a_device_that_does_not_compute_in_bfloat16_takes_float32(
    toy_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(SCHEDULE, precision="bfloat16")
    monkeypatch.setattr(bfloat16, "computed", lambda device: False)
    exact, fallen_back = train(toy_split)[0], train(toy_split, schedule=short)[0]
    monkeypatch.setattr(bfloat16, "computed", lambda device: True)
    assert same_weights(exact, fallen_back)
    assert not same_weights(exact, train(toy_split, schedule=short)[0])


def test_labels_beyond_the_classes_of_the_loss(toy_split: Split) -> None:
    with pytest.raises(ValueError, match="the training images have label 5; the loss was built for 4 classes"):
        train(toy_split, loss=Triplet(4, 8, miner="random"))


def test_training_with_frozen_batchnorm_leaves_its_statistics_alone(toy_split: Split) -> None:
    for frozen in (False, True):
        model, _ = train(toy_split, schedule=replace(SCHEDULE, freeze_batchnorm=frozen))
        statistics = torch.cat([value for name, value in model.state_dict().items() if "running_mean" in name])
        assert (statistics == 0).all() == frozen
        norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        assert not (norm.weight == 1).all(), "its scale is still learned"


def test_a_loss_that_is_not_finite_ends_training(toy_split: Split) -> None:
    class Broken(Standard):
        def forward(self, *given: Any) -> Tensor:
            return super().forward(*given) * float("nan")

    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(toy_split, defense=Broken())


@pytest.mark.parametrize("miner", MINERS)
def test_embeddings_that_are_no_numbers_end_training_with_every_miner(miner: str, toy_split: Split) -> None:
    class Diverged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.linear(images.mean((2, 3))) * float("nan")

    loss = Triplet(int(toy_split.labels.max()) + 1, 4, miner=miner)
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 1; lower the learning rate"):
        fit(
            Diverged(),
            toy_split,
            loss,
            Standard(),
            SCHEDULE,
            seed=0,
            validate=lambda model: {},
            report=lambda line: None,
        )


def test_training_on_random_parts(toy_split: Split) -> None:
    schedule = Schedule(epochs=1, batches=2, classes=3, images_per_class=2, crop=16, flip=True, crop_scale=(0.5, 1.0))
    first, _ = train(toy_split, schedule=schedule)
    second, _ = train(toy_split, schedule=schedule)
    whole, _ = train(toy_split, schedule=replace(schedule, crop=0))
    assert same_weights(first, second)
    assert not same_weights(first, whole)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("loss", "target"), [(triplet, "positive"), (proxies, "query")])
def test_constant_rate_with_adam(precision: str, loss: Callable[[], Loss], target: str, toy_split: Split) -> None:
    schedule = Schedule(
        epochs=2,
        batches=0,
        classes=3,
        images_per_class=3,
        optimizer="adam",
        rate="constant",
        learning_rate=1e-3,
        precision=precision,
    )
    defense = Robust(0.03, 1, target, step_size=0.03)
    model, history = train(toy_split, loss=loss(), schedule=schedule, defense=defense)
    assert len(history.epochs) == 2
    assert all(value.dtype in (torch.float32, torch.int64) for value in model.state_dict().values())


def test_validation_attacks_the_same_queries_for_every_model(toy_split: Split) -> None:
    """The scores count natural R@1 of all images and adversarial R@1 of some; a strong attack leaves none."""
    model = build("conv4", 8, seed=0, statistics=toy_split.statistics())
    model.train()
    weak, again, strong = (
        validator(toy_split, queries=12, eps=eps, steps=8, seed=0)(model) for eps in (1e-6, 1e-6, 1.0)
    )
    assert weak == again
    assert weak["natural"] == strong["natural"] > 0.5
    assert weak["adversarial"] * 12 == pytest.approx(round(weak["adversarial"] * 12))
    assert weak["adversarial"] > 0.5
    assert strong["adversarial"] == 0
    assert model.training, "the mode is as it was"


@pytest.mark.parametrize(("side", "sizes"), [(32, [130]), (112, [130]), (224, [64, 64, 2])])
def test_validation_attacks_fewer_large_images_at_a_time(
    side: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the attack would need more of a GPU's memory than the training does."""
    images = np.random.default_rng(0).integers(0, 256, (130, side, side, 3), np.uint8)
    split, attacked = Split(images, np.arange(130) // 5, [str(number) for number in range(26)]), []

    def unchanged(images: Tensor, *_: Any, **given: Any) -> Tensor:
        attacked.append(len(images))
        return images

    monkeypatch.setattr("dml.training.selection.pgd", unchanged)
    model = nn.Sequential(nn.AvgPool2d(side // 2), nn.Flatten(), nn.Linear(12, 4))
    scores = validator(split, queries=130, eps=0.03, steps=1, seed=0)(model)
    assert attacked == sizes
    assert scores["adversarial"] == pytest.approx(scores["natural"]), "the images are as they were"


def test_steps_per_epoch() -> None:
    schedule = Schedule(epochs=1, batches=0, classes=3, images_per_class=4)
    assert schedule.steps(100) == 8
    assert schedule.steps(5) == 1
    assert replace(schedule, batches=7).steps(100) == 7


def test_augmentation_of_a_schedule() -> None:
    schedule = Schedule(1, 1, 2, 2, flip=True, crop=16, crop_scale=(0.5, 1.0))
    assert schedule.augmentation == Augmentation(shift=0, flip=True, crop=16, crop_scale=(0.5, 1.0))
    assert Schedule(1, 1, 2, 2, shift=3).augmentation.shift == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crop": 16, "shift": 2}, "shift is 2; with a random crop it must be 0"),
        ({"crop_scale": (0.9, 0.1)}, "two shares of 1, the smaller first"),
        ({"batches": -1}, "batches is -1"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"learning_rate": 0}, "learning_rate is 0; it must be above 0"),
        ({"averaging": 1}, "averaging is 1; it must be below 1"),
    ],
)
def test_a_schedule_that_makes_no_sense(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Schedule(**{"epochs": 1, "batches": 1, "classes": 2, "images_per_class": 2, **change})


def test_the_cost_of_a_training_is_what_it_embeds(toy_split: Split) -> None:
    """Standard training embeds its batch once; robust training also perturbed images, each PGD step and at the end."""
    schedule = Schedule(epochs=2, batches=3, classes=3, images_per_class=2)
    _, standard = train(toy_split, schedule=schedule)
    _, robust = train(toy_split, schedule=schedule, defense=Robust(eps=0.03, steps=4))
    assert standard.embedded == 2 * 3 * 6
    assert robust.embedded == 2 * 3 * 6 * (1 + 4 + 1)
