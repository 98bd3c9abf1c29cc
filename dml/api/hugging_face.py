"""Image features of models of the package transformers, which is not among this project's requirements."""

import importlib.util
from typing import Any, NamedTuple

from torch import Tensor, nn


class Found(NamedTuple):
    """A model and what its processor does to images.

    Attributes:
        module: normalised images (B, 3, size, size) -> embeddings (B, D).
        mean, std: of each channel.
        size: side of the images that it takes. What a processor first cuts off at the border is not cut off.
    """

    module: nn.Module
    mean: list[float]
    std: list[float]
    size: int


def load(path: str) -> Found:
    """Return a model by its name on the Hugging Face Hub or its folder, with the weights that are published there.

    Raises:
        ValueError: transformers is not installed or cannot load the model, or it takes images of another kind.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ValueError("hf: needs the package transformers; pip install transformers")
    from transformers import AutoImageProcessor, AutoModel

    try:
        model, report = AutoModel.from_pretrained(path, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"transformers cannot load {path}: {str(error).splitlines()[0]}") from error
    missing = set(report["missing_keys"])
    if any("pooler" not in name for name in missing):
        raise ValueError(f"{path} has no weights for {min(missing)}, among others; they would be random numbers")
    if getattr(processor, "do_flip_channel_order", False):
        raise ValueError(f"{path} takes images of other channels than red, green, blue; write file.py:function for it")
    plain = ([0.0] * 3, [1.0] * 3)
    mean, std = (processor.image_mean, processor.image_std) if getattr(processor, "do_normalize", True) else plain
    return Found(_Features(model, pooled=not missing), list(mean), list(std), _side(processor, path))


def _side(processor: Any, path: str) -> int:
    cut = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    size = dict(cut or processor.size)
    side = size.get("height") or size.get("shortest_edge")
    if not side or size.get("width", side) != side:
        raise ValueError(f"{path} takes images of size {size}, not of one side; write file.py:function for it")
    return int(side)


class _Features(nn.Module):
    """What a model compares images by.

    Of a model of images and text that is what it compares with texts; of others the pooled output; of those that do
    not pool, or whose pooling was not published, the first token.
    """

    def __init__(self, model: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.model, self.pooled = model, pooled

    def forward(self, images: Tensor) -> Tensor:
        compared = hasattr(self.model, "get_image_features")
        found: Any = (self.model.get_image_features if compared else self.model)(pixel_values=images)
        if isinstance(found, Tensor):  # before version 5
            return found
        pooled = getattr(found, "pooler_output", None) if self.pooled else None
        return (found.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1)
