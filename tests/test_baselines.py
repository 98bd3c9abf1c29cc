"""Retrieval without learning."""

import numpy as np
import torch

from dml.data import Split
from dml.evaluation.controls import SoftHistogram, attacked_histogram, baselines, colour_histogram, pixels
from dml.evaluation.suites import Auto


def test_pixels_are_the_small_picture_less_its_mean() -> None:
    images = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    found = pixels(images)
    small = images.unfold(2, 2, 2).unfold(3, 3, 3).mean((4, 5)).flatten(1)
    small = small - small.mean(1, keepdim=True)
    torch.testing.assert_close(found, small / small.norm(dim=1, keepdim=True))


def test_histograms_compare_by_bhattacharyyas_coefficient() -> None:
    images = torch.zeros(2, 3, 8, 8)
    images[0, 0, :2] = 1.0  # a quarter red, the rest black
    images[1, 0, :4] = 0.99  # half of it in the same cell
    described = colour_histogram(images)
    assert described.shape == (2, 512)
    np.testing.assert_allclose(described[0] @ described[1], (0.25 * 0.5) ** 0.5 + (0.75 * 0.5) ** 0.5, rtol=1e-6)


def test_colours_find_what_pixels_do_not() -> None:
    """Classes of one colour each: no histogram errs, and pixels less their mean see nothing."""
    draw = np.random.default_rng(0)
    colours = draw.permutation(8)[:, None] * [32, 0, 0] + [4, 4, 4]
    images = np.repeat(colours, 4, axis=0)[:, None, None] + draw.integers(0, 3, (32, 16, 16, 1))
    split = Split(images.astype(np.uint8), np.repeat(np.arange(8), 4), [str(label) for label in range(8)])
    found = baselines(split)
    assert found["colour histogram"] == {"r1": 1.0, "map_r": 1.0}
    assert found["pixels"]["r1"] < 0.6


def test_a_soft_histogram_withstands_what_does_not_reach_another_colour() -> None:
    """Two colours a whole grid apart: no small perturbation takes a picture to the other, half the range does."""
    images = np.full((8, 12, 12, 3), 51, dtype=np.uint8)
    images[4:] = 204
    split = Split(images, np.repeat([0, 1], 4), ["dark", "bright"])
    suite = Auto(queries=300, eps=(0.01, 0.5), margin_steps=10, targets=1, cross_entropy_steps=0, square_tries=0)
    found = attacked_histogram(split, suite, seed=0)
    assert (found["r1"], found["map_r"], found["queries"]) == (1.0, 1.0, 8)
    assert found["left"] == {"0.01": 1.0, "0.5": 0.0}


def test_a_soft_histogram_is_of_unit_length_and_the_same_for_a_mirrored_picture() -> None:
    images = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    found = SoftHistogram()(images)
    assert found.shape == (4, 216)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(SoftHistogram()(images.flip(3)), found)
