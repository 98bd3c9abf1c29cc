"""The whitened head that training starts from."""

import numpy as np
import pytest
import torch

from dml.data.base import Split
from dml.data.transforms import to_float
from dml.models.embedder import build
from dml.models.whitening import whiten
from dml.retrieval.index import Search


@pytest.fixture
def many() -> Split:
    """Many more images than features, of 6 classes that differ little."""
    draw = np.random.default_rng(0)
    patterns = draw.integers(118, 138, (6, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(patterns, 50, axis=0) + draw.normal(0, 12, (300, 16, 16, 3))
    return Split(np.clip(images, 0, 255).astype(np.uint8), np.repeat(np.arange(6), 50), list("abcdef"))


def test_the_output_of_the_head_is_white(many: Split) -> None:
    model = whiten(build("conv4", 8, seed=0, statistics=many.statistics()), many).eval()
    with torch.no_grad():
        found = model.head(model.features(to_float(many.images))).double()
    torch.testing.assert_close(found.mean(0), torch.zeros(8, dtype=torch.float64), atol=1e-3, rtol=0)
    covariance = torch.cov(found.T)
    off = covariance - torch.diag(covariance.diag())
    torch.testing.assert_close(off, torch.zeros_like(off), atol=2e-3, rtol=0)
    assert covariance[0, 0] == pytest.approx(1 / 1.001, abs=2e-3)
    assert (covariance.diag().diff() < 1e-3).all(), "the floor shrinks directions of little variance"


def test_whitened_images_are_easier_to_find(many: Split) -> None:
    """All features share a mean, which dominates the output of a random head."""
    plain, white = (build("conv4", 8, seed=0, statistics=many.statistics()) for _ in range(2))
    found = [Search.over(model, many).natural().map_r.mean() for model in (plain, whiten(white, many))]
    assert found[1] > found[0] + 0.1


def test_the_embedding_must_not_be_longer_than_the_features(many: Split) -> None:
    with pytest.raises(ValueError, match="dimension is 200; to whiten the 128 features it must be at most 128"):
        whiten(build("conv4", 200, seed=0), many)
