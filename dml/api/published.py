"""Networks of timm and torchvision, with published weights or with one's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from dml.api import state_dict

USUAL_MEAN = (0.485, 0.456, 0.406)  # of ImageNet's pixels: who trains with another knows it


class Published(NamedTuple):
    """A network with its weights, the mean and deviation of the published ones, and what was left out of a file."""

    network: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    left_out: str | None


def assumed(name: str, found: Published) -> str | None:
    """Return what weights of one's own are taken to be trained with, unless that is the usual mean."""
    if tuple(found.mean) == USUAL_MEAN:
        return None
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (found.mean, found.std))
    return (
        f"pixels are normalised as the published weights of {name} want it, mean {mean} and std {std}; give mean and "
        "std if these weights were trained with others"
    )


def from_timm(name: str, weights: Path | None, dimension: int | None) -> Published:
    """Return a network of timm; see :func:`dml.api.wrap.load`."""
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}; timm.list_models() lists them")
    left_out = None
    if weights is not None:
        network = timm.create_model(name, num_classes=dimension or 0)
        left_out = state_dict.read(network, weights, name, dimension)
    else:
        network = _timm_pretrained(name)
    return Published(network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"], left_out)


def _timm_pretrained(name: str) -> nn.Module:
    import timm

    if name.split(".")[0] == "tf_efficientnet_lite0":  # the environment has its weights as a package
        from dml.models.backbones.lite0_stages import efficientnet_lite0

        network = efficientnet_lite0("imagenet")
        network.reset_classifier(0)
        return network
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the client's errors have no common base
        raise ValueError(
            f"the weights of {name} cannot be downloaded ({type(error).__name__}); give weights, a file of them"
        ) from error


def from_torchvision(name: str, weights: Path | None, dimension: int | None) -> Published:
    """Return a network of torchvision; see :func:`dml.api.wrap.load`."""
    from torchvision import models
    from torchvision.models import get_model, get_model_weights

    if name not in models.list_models(module=models):
        raise ValueError(f"torchvision has no classifier {name!r}; torchvision.models.list_models() lists them")
    published = get_model_weights(name).DEFAULT
    try:
        given = {"weights": published} if weights is None else {}
        network = get_model(name, **given, **({} if dimension is None else {"num_classes": dimension}))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"the weights of {name} cannot be downloaded ({type(error).__name__}); give weights, a file of them"
        ) from error
    head = next((word for word in ("fc", "classifier", "head", "heads") if hasattr(network, word)), None)
    if head is None:
        raise ValueError(f"{name} has no classifier to leave out; write file.py:function for it")
    if dimension is None:
        setattr(network, head, _without_last(getattr(network, head)))
    left_out = None if weights is None else state_dict.read(network, weights, name, dimension)
    if hasattr(network, "transform_input"):  # of Inception and GoogLeNet: their published weights want it
        network.transform_input = True
    transform = published.transforms()
    return Published(network, transform.mean, transform.std, left_out)


def _without_last(head: nn.Module) -> nn.Module:
    """A classifier without its last layer that has weights; what that was a convolution for is averaged instead."""
    if not isinstance(head, nn.Sequential):
        return nn.Identity()
    last = max(place for place, layer in enumerate(head) if any(True for _ in layer.parameters()))
    pool = [nn.AdaptiveAvgPool2d(1)] if isinstance(head[last], nn.Conv2d) else []
    return nn.Sequential(*head[:last], *pool)
