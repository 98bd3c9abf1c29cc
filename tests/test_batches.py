"""Training batches: seeded, changed at random as asked, and made in order, ahead or between two steps."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from dml.data import loading
from dml.data.base import DatasetError, Pictures, Split
from dml.data.loading import ahead, training_batches
from dml.data.sampling import evenly
from dml.data.transforms import Augmentation, random_part, shifted, to_float


def test_rows_are_spread_over_all() -> None:
    assert evenly(100, 7).tolist() == list(range(7))
    assert len(evenly(100, 0)) == 0
    some = evenly(100, 1999)
    assert (len(some), some[0], some[-1]) == (100, 0, 1998)
    assert np.diff(some).min() >= 20


def test_augmentation_moves_and_mirrors() -> None:
    images = np.arange(2 * 6 * 6 * 3, dtype=np.uint8).reshape(2, 6, 6, 3)
    assert shifted(images, Augmentation(), np.random.default_rng(0)) is images
    change = Augmentation(shift=1, flip=True)
    found = [shifted(images, change, np.random.default_rng(seed))[0] for seed in range(60)]
    padded = np.pad(images[0], ((1, 1), (1, 1), (0, 0)), mode="edge")
    moved = [padded[r : r + 6, c : c + 6] for r in range(3) for c in range(3)]
    allowed = [image.tobytes() for move in moved for image in (move, move[:, ::-1])]
    assert {image.tobytes() for image in found} <= set(allowed)
    assert len({image.tobytes() for image in found}) > 12


def test_to_float_keeps_channels_and_range() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    tensor = to_float(images)
    assert tensor.shape == (2, 3, 4, 5)
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(tensor[1, 2].numpy(), images[1, :, :, 2] / 255, atol=1e-7)


def test_a_pixel_is_its_level_over_255_to_the_last_bit() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert np.array_equal(to_float(levels)[0, 0].numpy(), levels[0, :, :, 0].astype(np.float32) / np.float32(255))


def cut_ramps(seed: int, shape: tuple[int, int] = (64, 64), count: int = 40) -> np.ndarray:
    """Random parts of images whose red rises from left to right and green from top to bottom, which tells the part.

    Seen as an array they are their central squares, as prepared images are.
    """
    height, width = shape
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, width)
    image[..., 1] = np.linspace(0, 255, height)[:, None]
    index = np.stack([np.arange(count) * image.size, np.full(count, height), np.full(count, width)], axis=1)
    stored = Pictures(np.tile(image.reshape(-1), count), index, (min(shape), min(shape)))
    split = Split(stored, np.repeat(np.arange(2), count // 2), ["a", "b"])
    ((images, labels),) = training_batches(
        split,
        classes=2,
        images_per_class=count // 2,
        batches=1,
        augmentation=Augmentation(crop=32, flip=True),
        device=torch.device("cpu"),
        generator=np.random.default_rng(seed),
    )
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


def test_random_parts_reach_the_edges_of_long_images() -> None:
    """The central square of an image three times as wide as tall shows red from a third to two thirds."""
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


@pytest.mark.parametrize(("crop", "device", "apart"), [(0, "cpu", False), (8, "cpu", True), (0, "meta", True)])
def test_whole_images_on_a_cpu_are_made_between_two_steps(
    crop: int, device: str, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by, draw = [], loading.balanced_batches

    def drawn(*given: object, **settings: object) -> Iterator[np.ndarray]:
        for rows in draw(*given, **settings):
            made_by.append(threading.current_thread())
            yield rows

    monkeypatch.setattr(loading, "balanced_batches", drawn)
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), dtype=np.uint8)
    batches = training_batches(
        Split(images, np.arange(8) % 2, ["a", "b"]),
        classes=2,
        images_per_class=2,
        batches=3,
        augmentation=Augmentation(shift=2, flip=True, crop=crop),
        device=torch.device(device),
        generator=np.random.default_rng(0),
    )
    assert [found.shape for found, _ in batches] == [(4, 3, crop or 12, crop or 12)] * 3
    assert len(made_by) == 3
    assert all((thread is not threading.current_thread()) == apart for thread in made_by)
