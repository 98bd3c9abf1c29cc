"""The embedding model: everything between an image in [0, 1] and a point on the unit sphere."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dml.common.randomness import seeded_global
from dml.common.table import find
from dml.models.backbones import BACKBONES
from dml.models.backbones.base import Backbone, check_start


class Embedder(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> embeddings (B, dimension) of unit length.

    The normalisation of the images is part of the model, so that a perturbation is always measured in pixel units.

    Args:
        backbone: normalised images -> features.
        dimension: length of an embedding; 0 for the features as they are, without a head.
        mean, std: to normalise images by, one number per channel; by default images are left as they are.
    """

    def __init__(
        self, backbone: Backbone, dimension: int, mean: list[float] | None = None, std: list[float] | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.width, dimension) if dimension else nn.Identity()
        self.dimension = dimension or backbone.width
        self.register_buffer("mean", torch.tensor(mean or [0.0] * 3).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std or [1.0] * 3).view(1, 3, 1, 1))
        self.to(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, width) of images: the backbone's output and the head's input."""
        images = images.contiguous(memory_format=torch.channels_last)  # convolutions run up to 3x faster
        return self.backbone((images - self.mean) / self.std)

    def forward(self, images: Tensor) -> Tensor:
        """Return unit embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""
        # Distances are taken in full precision, even where the layers before compute in less.
        return F.normalize(self.head(self.features(images)).float(), dim=1)


def build(
    name: str,
    dimension: int,
    *,
    seed: int,
    start: str = "random",
    statistics: Mapping[str, list[float]] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Embedder:
    """A model with fresh weights that depend on ``seed`` alone, not on the global generator.

    Args:
        name: of the backbone, a key of ``BACKBONES``.
        dimension: length of an embedding; 0 for no head.
        seed: of all weights that are initialised at random.
        start: of the backbone's weights: ``random``, ``imagenet``, or the path of a file.
        statistics: ``mean`` and ``std`` of the training images, to normalise by where the backbone asks for no other
            values. None leaves images as they are there.
        options: further arguments of the backbone.

    Raises:
        ValueError: the name is unknown, or the backbone cannot start so.
        WeightsError: the weights cannot be downloaded, or the file holds others.
    """
    kind: type[Backbone] = find(BACKBONES, name, "backbone")
    check_start(name, kind, start)
    given = (None, None) if statistics is None else (statistics["mean"], statistics["std"])
    mean, std = kind.normalisation(start) or given
    with seeded_global(seed, "weights"):
        return Embedder(kind(start, **options or {}), dimension, mean, std)


def freeze_batchnorm(model: nn.Module) -> None:
    """Put every BatchNorm of a model in training mode back to its running statistics, which then do not change."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode for a block; the mode of every sub-module is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def best_device() -> torch.device:
    """The GPU if there is one, set to full float32 and repeatable results; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda")


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's parameters, or of its buffers if it has none; the CPU if it has neither."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")
