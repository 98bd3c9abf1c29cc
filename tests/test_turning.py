"""Quarter turns of images as further classes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dml.data.base import Split
from dml.data.turning import TURNS, TurnedImages, turned
from dml.training.schedule import Schedule


def _split(groups: bool = True) -> Split:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    owners = np.array([0, 0, 1, 2, 2]) if groups else None
    return Split(images, np.array([0, 0, 0, 1, 1]), ["a", "b", "other"], owners)


def test_each_turn_of_a_class_is_a_class() -> None:
    found = turned(_split())
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 6, 6, 7, 7]
    assert found.groups is not None
    assert found.groups.tolist() == [0, 0, 1, 2, 2, 3, 3, 4, 5, 5, 6, 6, 7, 8, 8, 9, 9, 10, 11, 11]
    assert len(found) == len(found.images) == 20
    assert [found.class_names[label] for label in (0, 1, 2, 7)] == ["a", "b", "a, turned 90", "b, turned 270"]
    assert turned(_split(groups=False)).groups is None


@given(st.lists(st.integers(0, 19), min_size=1, max_size=8))
def test_images_are_turned_counterclockwise_when_they_are_asked_for(rows: list[int]) -> None:
    split = _split()
    found = TurnedImages(split.images)[np.array(rows)]
    for row, image in zip(rows, found, strict=True):
        assert np.array_equal(image, np.rot90(split.images[row % 5], row // 5))


def test_turning_leaves_the_images_alone() -> None:
    split = _split()
    before = split.images.copy()
    TurnedImages(split.images)[np.arange(TURNS * 5)]
    assert np.array_equal(split.images, before)


def test_a_random_crop_cannot_be_turned() -> None:
    with pytest.raises(ValueError, match="turns is true; with a random crop it must be false"):
        Schedule(epochs=1, batches=1, classes=2, images_per_class=2, crop=8, turns=True)
