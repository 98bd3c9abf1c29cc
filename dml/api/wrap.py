"""Models that people have, as modules from images in [0, 1] to embeddings."""

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dml.api import hugging_face, published
from dml.api.pixels import Side, check_side
from dml.common.checks import known
from dml.common.files import ROOT
from dml.config.build import model as build
from dml.config.schema import Model
from dml.models import weights as stored

KINDS = "a folder with settings.json and weights.safetensors, timm:NAME, torchvision:NAME, hf:PATH or file.py:function"
RGB, BGR = "rgb", "bgr"


class Method(nn.Module):
    """A method of a module, such as ``clip.encode_image``, as a module: with its weights, mode and device.

    Args:
        method: images -> embeddings.
    """

    def __init__(self, method: MethodType) -> None:
        super().__init__()
        self.owner, self.name = method.__self__, method.__name__
        self.training = self.owner.training

    def forward(self, images: Tensor) -> Any:
        """Return what the method returns of images (B, 3, H, W)."""
        return getattr(self.owner, self.name)(images)


def as_module(given: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Return a method of a module as a module, that of distributed training without it, and anything else as it is.

    Processes that train together exchange buffers at each call, and an attack calls in each as often as it needs.
    """
    if isinstance(given, DistributedDataParallel):
        given = given.module
    is_method = isinstance(given, MethodType) and isinstance(given.__self__, nn.Module)
    return Method(given) if is_method else given


class Wrapped(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> what a module or function gives for them, resized and normalised.

    Both are part of the model, so that a perturbation is measured in pixels of the images as they are given.

    Args:
        module: normalised images -> embeddings.
        mean, std: of each channel.
        size: side, or height and width, that images are resized to inside the model; None leaves them.
        channels: ``rgb``, or ``bgr`` for a module that wants blue first.
        output: key or place of the embeddings in what the module gives; None if it gives nothing else.

    Attributes:
        notes: what was left out of the file of its weights, and what was assumed of them, a sentence each.
    """

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        module: Callable[[Tensor], Any],
        mean: Sequence[float],
        std: Sequence[float],
        size: Side | None,
        channels: str,
        output: str | int | None,
    ) -> None:
        super().__init__()
        self.module, self.channels, self.output = module, channels, output
        self.size = None if size is None else tuple(np.broadcast_to(size, 2).tolist())
        self.training = getattr(module, "training", False)  # and not .train(): layers may have another mode
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""
        if self.size is not None and images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        if self.channels == BGR:
            images = images.flip(1)
        found = self.module((images - self.mean.to(images)) / self.std.to(images))
        return found if self.output is None else found[self.output]


def wrap(
    module: Callable[[Tensor], Any],
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    size: Side | None = None,
    channels: str = RGB,
    output: str | int | None = None,
) -> Wrapped:
    """Put normalisation inside a model, and whatever else lies between images in [0, 1] and embeddings.

    Args:
        module: normalised images (B, 3, H, W) -> embeddings (B, D): a module, a method of one such as
            ``clip.encode_image``, or a function; it is used as it is, not copied.
        mean, std: of each channel, in the module's order, for pixels in [0, 1]; for ImageNet (.485, .456, .406) and
            (.229, .224, .225), for a module that wants [-1, 1] (.5, .5, .5) and (.5, .5, .5).
        size: side of the square that images are resized to, or (height, width).
        channels: ``rgb``, or ``bgr`` if the module wants blue first, as many for faces do.
        output: if the module gives several things, key or place of the embeddings.

    Raises:
        ValueError: the module cannot be called, the mean or the deviation is not that of three channels in [0, 1], the
            size is no number of pixels, or the channels are unknown.
    """
    if not callable(module):
        raise ValueError(f"module is a {type(module).__name__}; give a module, a method of one, or a function")
    for name, values in (("mean", mean), ("std", std)):
        if not _are_of_channels(values) or (name == "std" and not min(values) > 0):
            raise ValueError(f"{name} is {values}; give three numbers in [0, 1], for pixels in [0, 1]")
    check_side(size)
    known("channels", channels, (RGB, BGR))
    return Wrapped(as_module(module), mean, std, size, channels, output)


def _are_of_channels(values: Any) -> bool:
    try:
        return len(values) == 3 and all(0 <= value <= 1 for value in values)
    except TypeError:  # one number, or no numbers
        return False


def load(
    name: str | Path,
    weights: str | Path | None = None,
    dimension: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Callable[[Tensor], Any]:
    """Return a model by name, from images in [0, 1] to embeddings, in evaluation mode.

    Args:
        name: the folder of a model that this repository trained (settings.json and weights.safetensors);
            ``timm:NAME`` or ``torchvision:NAME``, without the classifier; ``hf:PATH``, the image features of a model
            of transformers, see :mod:`dml.api.hugging_face`; or ``file.py:function``, a function without arguments
            that returns the model. The last runs the file.
        weights: of a timm or torchvision model: safetensors, or what torch.save wrote, which is read without running
            code: a state dict, also inside a checkpoint or with the prefix of DataParallel. None takes the published
            ones.
        dimension: of the embedding, where a linear layer in the classifier's place makes it, as many trainings in
            metric learning have it; the file of weights then holds that layer under the classifier's name.
        mean, std: of each channel, which the weights were trained with; None takes those of the published ones.

    Raises:
        ValueError: there is no such model, or its weights cannot be had.
    """
    if not isinstance(name, str | Path):
        raise ValueError(f"a model is loaded by its name, not from a {type(name).__name__}; give {KINDS}")
    kind, _, rest = str(name).partition(":")
    readers = {"timm": published.from_timm, "torchvision": published.from_torchvision}
    if dimension is not None and (not isinstance(dimension, Integral) or dimension < 1):
        raise ValueError(f"dimension is {dimension!r}; it must be a whole number, at least 1")
    if dimension is not None and (weights is None or kind not in readers):
        raise ValueError("dimension is that of a layer in the weights of a timm: or torchvision: model; give weights")
    if (mean is None) != (std is None) or (mean is not None and weights is None):
        raise ValueError("mean and std are those that weights of one's own were trained with; give all three")
    if kind in readers:
        found = readers[kind](rest, None if weights is None else Path(weights), dimension)
        own = weights is not None and mean is None
        model = wrap(found.network, *((found.mean, found.std) if mean is None else (mean, std))).eval()
        model.notes = tuple(filter(None, (found.left_out, published.assumed(rest, found) if own else None)))
        return model
    if weights is not None:
        raise ValueError(f"weights goes with timm: and torchvision: models, not with {name}")
    if kind == "hf":
        found = hugging_face.load(rest)
        return wrap(found.module, found.mean, found.std, found.size).eval()
    if kind.endswith(".py") and rest:
        return _function(Path(kind), rest)
    return _own(Path(name))


def _own(folder: Path) -> nn.Module:
    place = next((path for path in (folder, ROOT / folder) if (path / "settings.json").exists()), None)
    if place is None:
        raise ValueError(f"{folder} is no model; give {KINDS}, or wrap one that you have: dml.wrap(module)")
    try:
        made = json.loads((place / "settings.json").read_text(encoding="utf-8"))
        model = build.empty(Model(**made["settings"]["model"]))
        return stored.load_weights(model, place / "weights.safetensors", made.get("weights"))
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{place} holds no model of this repository: {' '.join(str(error).split())}") from error


def _function(file: Path, name: str) -> Callable[[Tensor], Any]:
    spec = importlib.util.spec_from_file_location(f"dml_model_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{file} does not exist; write file.py:function")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    if (beside := str(file.parent.resolve())) not in sys.path:
        sys.path.append(beside)  # files that it imports
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file does
        raise ValueError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, name, None)):
        raise ValueError(f"{file} has no function {name!r}; it must return the model")
    try:
        return getattr(module, name)()
    except Exception as error:
        raise ValueError(f"{name}() of {file} returns no model: {type(error).__name__}: {error}") from error
