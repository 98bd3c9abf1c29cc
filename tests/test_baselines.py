"""Retrieval without learning."""

import numpy as np
import torch

from dml.baselines import baselines, colour_histogram, pixels
from dml.datasets import Split


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
