"""State dicts as people keep them: alone, inside a training's checkpoint, or named by what wrapped the model."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dml.models.weights import WeightsError, load_backbone

INSIDE = ("state_dict", "model_state_dict", "model")  # keys of checkpoints, as timm, Lightning and tutorials write them
WRAPPERS = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, an attribute of a Lightning module
CLASSES = (1000, 11221, 11821, 21841, 21842, 21843)  # of classifiers of ImageNet's parts, which no embedding needs
CLASSIFIERS = {torch.Size([count]) for count in CLASSES}
NO_LAYER = "\0"  # no prefix: every layer of the network must be in the file


class UnusedWeightsWarning(UserWarning):
    """A file of weights holds more than the network that was made from it."""


def read(network: nn.Module, file: Path, name: str) -> None:
    """Read weights into a network, whatever a training put around them.

    Warns of weights in the state dict that the network has no place for, unless they are ImageNet's classifier: a head
    that makes the embeddings would be left out.

    Args:
        network: changed in place.
        file: safetensors, or what ``torch.save`` wrote of tensors in dictionaries; no code in it is run.
        name: of the network, for messages.

    Raises:
        WeightsError: the file does not exist or holds other weights.
    """
    inner = unwrapped(file)
    try:
        load_backbone(network, file, name, without=NO_LAYER)
    except WeightsError:
        if inner is None:
            raise
        with TemporaryDirectory() as folder:
            alone = Path(folder) / file.with_suffix(".safetensors").name
            save_file({key: value.detach().clone().contiguous() for key, value in inner.items()}, alone)
            try:
                load_backbone(network, alone, name, without=NO_LAYER)
            except WeightsError as error:
                raise WeightsError(str(error).replace(str(alone), str(file))) from error
    _warn_of_others(network, file, name, inner or _held(file))


def _warn_of_others(network: nn.Module, file: Path, name: str, held: Mapping[str, Any]) -> None:
    """Warn of weights that the network has no place for."""
    has = network.state_dict()
    others = {key: value for key, value in held.items() if key not in has and isinstance(value, Tensor)}
    heads = [key for key, value in others.items() if value.is_floating_point() and value.shape[:1] not in CLASSIFIERS]
    if heads:
        warnings.warn(
            f"{file} has {heads[0]} {list(others[heads[0]].shape)}, which {name} without its classifier has no place "
            "for: the features before it are attacked; if it makes the embeddings, write file.py:function",
            UnusedWeightsWarning,
            stacklevel=2,
        )


def unwrapped(file: Path) -> dict[str, Tensor] | None:
    """Return the state dict inside a file that holds more, or other names; None if there is nothing to unwrap."""
    try:
        held = _held(file)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, SafetensorError):
        return None
    found = held
    while isinstance(found, Mapping) and (key := next((key for key in INSIDE if key in found), None)):
        found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        return None
    while prefix := next((word for word in WRAPPERS if all(key.startswith(word) for key in found)), None):
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return None if found is held else dict(found)


def _held(file: Path) -> Any:
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
