"""The training loop: it learns, repeats itself to the byte, resumes after a kill, and picks the epoch it should."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dml.data import DatasetError, Pictures, Split
from dml.data.loading import ahead, training_batches
from dml.data.sampling import augment, balanced_batches, evenly, random_part, sample_rows, to_float
from dml.defenses import Robust, Standard
from dml.losses import Triplet, TupleLoss
from dml.losses.mining import distance_weighted
from dml.models.embedder import Embedder, build
from dml.training import loop as training
from dml.training.loop import fit, read_history, save
from dml.training.schedule import Schedule
from dml.training.selection import validator

SCHEDULE = Schedule(epochs=3, batches=4, classes=4, images_per_class=3, learning_rate=1e-2, averaging=0.5, shift=1)
LOSS = TupleLoss(distance_weighted, Triplet(0.2))


def train(
    split: Split, checkpoint: Path, *, seed: int = 0, start: int | None = None, **changes: object
) -> tuple[Embedder, training.History]:
    model = build("conv4", 8, seed=seed if start is None else start, **split.statistics())
    settings = {
        "defense": Standard(),
        "schedule": SCHEDULE,
        "validate": validator(split, queries=6, eps=0.03, steps=2, seed=seed),
        "select": "natural",
        "report": lambda line: None,
    } | changes
    return model, fit(model, split, LOSS, seed=seed, checkpoint=checkpoint, **settings)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_training_learns(toy_split: Split, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)  # brightness that says nothing about the class, for the network to see through
    images = toy_split.images * draw.uniform(0.2, 1, (len(toy_split), 1, 1, 1))
    split = Split(images.astype(np.uint8), toy_split.labels, toy_split.class_names)
    _, history = train(split, tmp_path / "c.pt")
    assert history.epochs[-1]["loss"] < 0.8 * history.epochs[0]["loss"]
    assert set(history.epochs[0]) == {"loss", "natural", "adversarial", "seconds"}


@pytest.mark.parametrize("defense", [Standard(), Robust(0.03, 2)])
def test_same_seed_same_bytes(defense: object, toy_split: Split, tmp_path: Path) -> None:
    first, history = train(toy_split, tmp_path / "a.pt", defense=defense)
    torch.rand(7)  # the global generator has no say
    second, _ = train(toy_split, tmp_path / "b.pt", defense=defense)
    other, _ = train(toy_split, tmp_path / "c.pt", defense=defense, seed=1)
    assert same_weights(first, second)
    assert not same_weights(first, other)
    save(first, history, tmp_path / "one")
    save(second, history, tmp_path / "two")
    names = ["history.json", "weights.safetensors"]
    assert [(tmp_path / "one" / n).read_bytes() for n in names] == [(tmp_path / "two" / n).read_bytes() for n in names]
    assert read_history(tmp_path / "one") == history


def test_a_killed_training_resumes_to_the_same_weights(toy_split: Split, tmp_path: Path) -> None:
    whole, history = train(toy_split, tmp_path / "whole.pt")

    def killed_after(epochs: int) -> None:
        score = validator(toy_split, queries=6, eps=0.03, steps=2, seed=0)
        calls = []

        def validate(model: nn.Module) -> dict[str, float]:
            calls.append(1)
            if len(calls) > epochs:
                raise KeyboardInterrupt
            return score(model)

        with pytest.raises(KeyboardInterrupt):
            train(toy_split, tmp_path / "killed.pt", validate=validate)

    killed_after(1)
    assert (tmp_path / "killed.pt").exists()
    lines: list[str] = []
    resumed, again = train(toy_split, tmp_path / "killed.pt", report=lines.append)
    assert lines[0] == "resumed after epoch 1"
    assert len(lines) == 3
    assert same_weights(whole, resumed)
    assert again.chosen == history.chosen
    assert not (tmp_path / "killed.pt").exists(), "a finished training leaves no checkpoint"


@pytest.mark.parametrize("other", [{"defense": Robust(0.03, 1)}, {"start": 1}])
def test_a_checkpoint_of_other_settings_is_not_resumed(other: dict, toy_split: Split, tmp_path: Path) -> None:
    def stop(model: nn.Module) -> dict[str, float]:
        if stop.calls:
            raise KeyboardInterrupt
        stop.calls += 1
        return {"natural": 0.5}

    stop.calls = 0
    with pytest.raises(KeyboardInterrupt):
        train(toy_split, tmp_path / "c.pt", validate=stop)
    lines: list[str] = []
    train(toy_split, tmp_path / "c.pt", report=lines.append, **other)
    assert "resumed" not in lines[0]


def test_the_best_epoch_is_kept_and_the_later_of_equals(toy_split: Split, tmp_path: Path) -> None:
    states = []

    def validate(model: nn.Module) -> dict[str, float]:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"natural": [0.5, 0.5, 0.4][len(states) - 1]}

    model, history = train(toy_split, tmp_path / "c.pt", validate=validate)
    assert history.chosen == 1
    assert all(torch.equal(value, states[1][name]) for name, value in model.state_dict().items())


def test_training_with_frozen_batchnorm_leaves_its_statistics_alone(toy_split: Split, tmp_path: Path) -> None:
    for frozen in (False, True):
        model, _ = train(toy_split, tmp_path / "c.pt", schedule=replace(SCHEDULE, freeze_batchnorm=frozen))
        statistics = torch.cat([value for name, value in model.state_dict().items() if "running_mean" in name])
        assert (statistics == 0).all() == frozen
        norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        assert not (norm.weight == 1).all(), "its scale is still learned"


def test_a_loss_that_is_no_number_ends_training(toy_split: Split, tmp_path: Path) -> None:
    def broken(model: nn.Module, images: torch.Tensor, *others: object) -> torch.Tensor:
        return model(images).sum(1) * float("nan")

    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(toy_split, tmp_path / "c.pt", defense=broken)


def test_rows_are_spread_over_all() -> None:
    assert evenly(100, 7).tolist() == list(range(7))
    assert len(evenly(100, 0)) == 0
    some = evenly(100, 1999)
    assert (len(some), some[0], some[-1]) == (100, 0, 1998)
    assert np.diff(some).min() >= 20


def test_batches_are_balanced_and_without_repetition() -> None:
    labels = np.repeat(np.arange(7), [3, 4, 5, 6, 3, 3, 9])
    seen = np.zeros(7, dtype=int)
    for rows in balanced_batches(labels, classes=4, images_per_class=3, batches=70, generator=np.random.default_rng(0)):
        assert len(set(rows.tolist())) == 12
        values, counts = np.unique(labels[rows], return_counts=True)
        assert counts.tolist() == [3] * 4
        seen[values] += 1
    assert seen.max() - seen.min() <= 1, "every class is seen equally often"


@pytest.mark.parametrize(
    ("classes", "images", "words"), [(8, 2, "8 classes cannot be filled from 7"), (4, 4, "training class 0 has 3")]
)
def test_a_batch_that_cannot_be_filled(classes: int, images: int, words: str) -> None:
    labels = np.repeat(np.arange(7), [3, 4, 5, 6, 4, 4, 9])
    batches = balanced_batches(
        labels, classes=classes, images_per_class=images, batches=1, generator=np.random.default_rng(0)
    )
    with pytest.raises(DatasetError, match=words):
        next(batches)


def test_augmentation_moves_and_mirrors() -> None:
    images = np.arange(2 * 6 * 6 * 3, dtype=np.uint8).reshape(2, 6, 6, 3)
    assert augment(images, shift=0, flip=False, generator=np.random.default_rng(0)) is images
    found = [augment(images, shift=1, flip=True, generator=np.random.default_rng(seed))[0] for seed in range(60)]
    padded = np.pad(images[0], ((1, 1), (1, 1), (0, 0)), mode="edge")
    moved = [padded[r : r + 6, c : c + 6] for r in range(3) for c in range(3)]
    allowed = [picture.tobytes() for move in moved for picture in (move, move[:, ::-1])]
    assert {picture.tobytes() for picture in found} <= set(allowed)
    assert len({picture.tobytes() for picture in found}) > 12


def test_to_float_keeps_channels_and_range() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    tensor = to_float(images)
    assert tensor.shape == (2, 3, 4, 5)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(tensor[1, 2].numpy(), images[1, :, :, 2] / 255, atol=1e-7)


def test_the_attacked_queries_are_a_seeded_sample() -> None:
    rows = sample_rows(10, 50, 3)
    assert len(set(rows.tolist())) == 10
    assert np.array_equal(rows, sample_rows(10, 50, 3))
    assert not np.array_equal(rows, sample_rows(10, 50, 4))
    with pytest.raises(ValueError, match="60 queries are to be attacked; the test half holds 50"):
        sample_rows(60, 50, 3)


def cut_ramps(seed: int, shape: tuple[int, int] = (64, 64), count: int = 40) -> np.ndarray:
    """Random parts of pictures whose red rises from left to right and green from top to bottom, so each can be told.

    Seen as an array they are their central squares, as prepared pictures are.
    """
    height, width = shape
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, width)
    picture[..., 1] = np.linspace(0, 255, height)[:, None]
    index = np.stack([np.arange(count) * picture.size, np.full(count, height), np.full(count, width)], axis=1)
    stored = Pictures(np.tile(picture.reshape(-1), count), index, min(shape))
    split = Split(stored, np.repeat(np.arange(2), count // 2), ["a", "b"])
    schedule = Schedule(epochs=1, batches=1, classes=2, images_per_class=count // 2, crop=32, flip=True)
    draws = np.random.default_rng(seed)
    ((images, labels),) = training_batches(split, schedule, 1, torch.device("cpu"), draws)
    assert labels.sum() == count // 2
    return (images * 255).numpy()


def test_random_parts_are_seeded_and_show_what_is_there() -> None:
    found = cut_ramps(3)
    assert found.shape == (40, 3, 32, 32)
    assert np.array_equal(found, cut_ramps(3))
    assert not np.array_equal(found, cut_ramps(4))
    red, green = found[:, 0], found[:, 1]
    mirrored = red[:, :, 0].mean(1) > red[:, :, -1].mean(1)
    assert 8 < mirrored.sum() < 32
    wide = np.abs(red[:, :, -1].mean(1) - red[:, :, 0].mean(1)) / 255
    tall = (green[:, -1].mean(1) - green[:, 0].mean(1)) / 255
    assert ((wide * tall) < 1.01).all()
    assert ((wide * tall) > 0.05).all()
    assert ((wide / tall) > 0.7).all()
    assert ((wide / tall) < 1.45).all()


def test_random_parts_reach_the_edges_of_long_pictures() -> None:
    """The central square of a picture three times as wide as tall shows red from a third to two thirds."""
    red = cut_ramps(0, shape=(40, 120))[:, 0] / 255
    assert red.min() < 0.1
    assert red.max() > 0.9


def test_a_part_that_does_not_fit_is_the_middle() -> None:
    """A strip ten times as wide as tall has no part of all its area at 4:3."""
    top, left, tall, wide = random_part(30, 300, (1.0, 1.0), np.random.default_rng(0))
    assert (top, left, tall, wide) == (0, 130, 30, 40)


def test_items_are_made_ahead_and_in_order() -> None:
    made, third = [], threading.Event()

    def items() -> Iterator[int]:
        for item in range(1, 7):
            made.append((item, threading.current_thread()))
            if item == 3:
                third.set()
            yield item

    found = ahead(items(), 2)
    assert next(found) == 1
    assert third.wait(10), "while the first is used, the next two are made"
    assert len(made) == 3, "and no more than these"
    assert all(thread is not threading.current_thread() for _, thread in made)
    assert [*found] == [2, 3, 4, 5, 6]
    found = ahead(items(), 2)
    next(found)
    found.close()  # what is left half-way ends its thread
    assert not any(thread.is_alive() for _, thread in made)

    def failing() -> Iterator[int]:
        yield 1
        raise DatasetError("no more")

    found = ahead(failing(), 2)
    assert next(found) == 1
    with pytest.raises(DatasetError, match="no more"):
        next(found)


def test_training_on_random_parts(toy_split: Split, tmp_path: Path) -> None:
    schedule = Schedule(epochs=1, batches=2, classes=3, images_per_class=2, crop=16, flip=True, crop_scale=(0.5, 1.0))
    first, _ = train(toy_split, tmp_path / "a.pt", schedule=schedule)
    second, _ = train(toy_split, tmp_path / "b.pt", schedule=schedule)
    assert same_weights(first, second)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_constant_rate_with_adam(precision: str, toy_split: Split, tmp_path: Path) -> None:
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
    model, history = train(toy_split, tmp_path / "c.pt", schedule=schedule, defense=Robust(0.03, 1, step_size=0.03))
    assert len(history.epochs) == 2
    assert all(value.dtype in (torch.float32, torch.int64) for value in model.state_dict().values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crop": 16, "shift": 2}, "shift is 2; with a random crop it should be 0"),
        ({"crop_scale": (0.9, 0.1)}, "two shares of 1, the smaller first"),
        ({"batches": -1}, "batches is -1"),
    ],
)
def test_a_schedule_that_makes_no_sense(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Schedule(**{"epochs": 1, "batches": 1, "classes": 2, "images_per_class": 2, **change})
