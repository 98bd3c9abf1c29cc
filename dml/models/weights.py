"""Weights: writing and reading those of a model, a digest of them, and published weights of a backbone."""

import hashlib
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dml.common.files import atomic

Model = TypeVar("Model", bound=nn.Module)


class WeightsError(ValueError):
    """Weights that cannot be used; one sentence says what would be right."""


def save(model: nn.Module, file: Path) -> None:
    """Write the weights as safetensors, which cannot run code when they are read."""
    with atomic(file) as partial:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial)


def load_weights(model: Model, file: Path, wanted: str | None = None) -> Model:
    """Read weights that :func:`save` wrote into a model of the same architecture, and put it in evaluation mode.

    Args:
        model: changed in place.
        file: to read.
        wanted: :func:`digest` of the model that was saved, since safetensors has no checksum; None is not compared.

    Raises:
        WeightsError: the file holds other weights than those wanted.
    """
    model.load_state_dict(load_file(file))
    if wanted is not None and digest(model) != wanted:
        raise WeightsError(f"{file} holds other weights than those that were saved there")
    return model.eval()


def digest(model: nn.Module) -> str:
    """SHA-256 of a model's weights and buffers. A result names the model it was measured on by it."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def load_backbone(network: nn.Module, file: Path, name: str, *, without: str) -> None:
    """Read published weights into a network.

    Args:
        network: changed in place.
        file: safetensors, or what ``torch.save`` wrote of a state dict.
        name: of the network, for messages.
        without: prefix of the layers that the file may lack and that are not read, such as the classifier.

    Raises:
        WeightsError: the file does not exist or holds other weights.
    """
    try:
        stored = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        wanted = {key: value for key, value in stored.items() if not key.startswith(without)}
        network.load_state_dict(wanted, strict=False)
    except FileNotFoundError as error:
        raise WeightsError(f"{file} does not exist; put the published weights of {name} there") from error
    except EOFError as error:  # of an empty file, without a word
        raise WeightsError(f"{file} holds no weights of {name}: it is cut short") from error
    except Exception as error:  # torch's reader raises whatever it stumbles on
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{file} holds no weights of {name}: {told}") from error
    # The first files that torchvision published lack BatchNorm's counters of batches.
    needed = {key for key in network.state_dict() if not key.startswith(without) and "num_batches" not in key}
    if missing := needed - set(stored):
        raise WeightsError(f"{file} holds no weights of {name}: it lacks {sorted(missing)[0]}")
