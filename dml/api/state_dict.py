"""State dicts as people keep them: alone, inside a training's checkpoint, or named by what wrapped the model."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dml.models.weights import WeightsError, load_backbone

# Keys of checkpoints, as timm, Lightning and tutorials write them
INSIDE = ("state_dict", "model_state_dict", "model", "net")
# DataParallel, torch.compile, and attributes that a training keeps its network under
WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "resnet.", "trunk.")
CLASSIFIERS = {(count,) for count in (1000, 11221, 11821, 21841, 21842, 21843)}  # of ImageNet and its parts
HEADS = {"fc", "classifier", "head", "heads", "head_dist"}  # whose first layers may belong to the features
NO_LAYER = "\0"  # no prefix: every layer of the network must be in the file


def read(network: nn.Module, file: Path, name: str, dimension: int | None = None) -> str | None:
    """Read weights into a network, whatever a training put around them.

    Warns of weights in the state dict that the network has no place for, unless they are ImageNet's classifier: a head
    that makes the embeddings would be left out.

    Args:
        network: changed in place.
        file: safetensors, or what ``torch.save`` wrote of tensors in dictionaries; no code in it is run.
        name: of the network, for messages.
        dimension: of the embedding that the network's last layer makes; None if it has none.

    Returns:
        What it warned of.

    Raises:
        WeightsError: the file does not exist or holds other weights.
    """
    try:
        load_backbone(network, file, name, without=NO_LAYER)
        inner = _held(file)
    except WeightsError as error:
        inner = unwrapped(file)
        if inner is None:
            raise WeightsError(_reason(network, file, name) or str(error)) from error
        with TemporaryDirectory() as folder:
            alone = Path(folder) / file.with_suffix(".safetensors").name
            save_file({key: value.detach().clone().contiguous() for key, value in inner.items()}, alone)
            try:
                load_backbone(network, alone, name, without=NO_LAYER)
            except WeightsError as error:
                other = _other_shape(network, inner)
                told = f"{file} holds no weights of {name}: {other}" if other else str(error)
                raise WeightsError(told.replace(str(alone), str(file))) from error
    told = _without_place(network, file, name, dimension, inner)
    if told is not None:
        warnings.warn(told, UserWarning, stacklevel=2)
    return told


def _reason(network: nn.Module, file: Path, name: str) -> str | None:
    """Why a file that holds no bare state dict cannot be read, where torch's message begins with something else."""
    try:
        held = _held(file)
    except UnpicklingError as error:
        if "Unsupported global" in str(error):
            return (
                f"{file} holds more than tensors, such as a whole module, which is code and is not run: save "
                "module.state_dict() in its place"
            )
        return f"{file} is nothing that torch.save wrote; a page of an error or a pointer of Git LFS looks so"
    except Exception:  # the caller's error says it
        return None
    if not isinstance(held, Mapping):
        return f"{file} holds no weights of {name}: it holds a {type(held).__name__}; save module.state_dict()"
    other = _other_shape(network, held)
    return f"{file} holds no weights of {name}: {other}" if other else None


def _other_shape(network: nn.Module, held: Mapping[str, Any]) -> str | None:
    """Name the first of the weights that have another shape than those of a network."""
    for key, value in network.state_dict().items():
        if isinstance(held.get(key), Tensor) and held[key].shape != value.shape:
            return f"{key} is {list(held[key].shape)} there, and {list(value.shape)} in the network"
    return None


def _without_place(
    network: nn.Module, file: Path, name: str, dimension: int | None, held: Mapping[str, Any]
) -> str | None:
    """Name the first of the weights that a network has no place for; None if there are none."""
    has = network.state_dict()
    weights = [key for key, value in held.items() if isinstance(value, Tensor) and value.is_floating_point()]
    left = [key for key in weights if key not in has and held[key].shape[:1] not in CLASSIFIERS]
    if not left:
        return None
    body = {key.split(".")[0] for key in has} - HEADS
    if strange := [key for key in left if key.split(".")[0] in body]:
        told = f"{strange[0]} {list(held[strange[0]].shape)}"
        raise WeightsError(f"{file} has {told}, which {name} has no place for: they are of another network")
    first = max(left, key=lambda key: held[key].ndim)  # a weight rather than its bias
    shape = list(held[first].shape)
    if dimension is not None:
        return (
            f"{file} has {first} {shape}, which {name} has no place for: it is left out; if it makes the embeddings, "
            "write file.py:function"
        )
    is_linear = len(shape) == 2
    layer = f"if it is a linear layer that makes the embeddings, give dimension {shape[0]}, else " if is_linear else ""
    return (
        f"{file} has {first} {shape}, which {name} without its classifier has no place for: the features before it are "
        f"attacked; {layer or 'if it makes the embeddings, '}write file.py:function"
    )


def unwrapped(file: Path) -> dict[str, Tensor] | None:
    """Return the state dict inside a file that holds more, or other names; None if there is nothing to unwrap."""
    try:
        held = _held(file)
    except MemoryError:
        raise
    except Exception:  # the readers raise whatever they stumble on, and the caller's error names the file
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
