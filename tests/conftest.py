"""Small models and datasets that the tests share."""

import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is expected was computed on a CPU; test_gpu.py has a stand-in

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dml.common.files import ROOT
from dml.data.base import Split

torch.set_num_threads(1)  # on tensors this small a second thread only waits for the first


class LinearEmbedder(nn.Module):
    """Images -> a fixed linear map of their pixels: attacks on it have optima in closed form."""

    def __init__(self, pixels: int, dimension: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(dimension, pixels, generator=generator, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def toy_split() -> Split:
    """Six classes of six 16x16 images, each class a noisy colour pattern."""
    draw = np.random.default_rng(0)
    patterns = draw.integers(40, 215, (6, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(patterns, 6, axis=0) + draw.normal(0, 12, (36, 16, 16, 3))
    return Split(np.clip(images, 0, 255).astype(np.uint8), np.repeat(np.arange(6), 6), [f"class {i}" for i in range(6)])


@pytest.fixture
def picture_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that fills a folder with PNG files, one sub-folder per class."""

    def fill(classes: int = 8, images: int = 4, size: int = 16, name: str = "pictures") -> Path:
        draw = np.random.default_rng(1)
        for label in range(classes):
            place = tmp_path / name / f"class_{label:02d}"
            place.mkdir(parents=True)
            base = draw.integers(0, 255, (1, 1, 3))
            for copy in range(images):
                pixels = np.clip(base + draw.normal(0, 10, (size, size + 4, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{copy}.png")
        return tmp_path / name

    return fill


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes by far the longest goes first, so that it does not run alone in the end."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """The records that the README was written from: `make repro` on another machine may have changed those here."""
    packed = subprocess.run(
        ["git", "archive", "HEAD", "--", "results/runs"], cwd=ROOT, capture_output=True, check=False
    )
    if packed.returncode:  # a downloaded copy without git
        return ROOT / "results/runs"
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "results/runs"
