"""Settings to embedding models."""

from dml.common.arguments import arguments
from dml.common.checks import at_least
from dml.common.files import ROOT
from dml.common.table import find
from dml.config.schema import Data, Model
from dml.data.base import Split
from dml.models import embedder
from dml.models.backbones import BACKBONES
from dml.models.backbones.base import WORDS, check_start
from dml.models.whitening import whiten


def start(model: Model, split: Split, *, seed: int) -> embedder.Embedder:
    """Return the model that training starts with.

    Args:
        model: its settings.
        split: the training images. Their mean and deviation normalise images unless the backbone wants its own.
        seed: of what is initialised at random.

    Raises:
        ValueError: the backbone cannot be fitted to the training images, or the head not whiten them.
    """
    weights = model.weights if model.weights in WORDS else str(ROOT / model.weights)
    built = embedder.build(
        model.backbone,
        model.dimension,
        seed=seed,
        start=weights,
        statistics=split.statistics(),
        options=model.options,
    )
    built.backbone.begin(split, seed)
    return whiten(built, split) if model.whiten else built


def empty(model: Model) -> embedder.Embedder:
    """Return a model of this architecture to load trained weights into."""
    return embedder.build(model.backbone, model.dimension, seed=0, options=model.options)


def check_model(model: Model, data: Data, where: str) -> None:
    """Raise ValueError if the backbone is unknown, cannot start from the weights or so, or wants larger images."""
    backbone = find(BACKBONES, model.backbone, f"{where}.model.backbone")
    try:
        check_start(model.backbone, backbone, model.weights)
    except ValueError as error:
        raise ValueError(f"{where}.model.weights: {error}") from error
    arguments(backbone, model.options, f"{where}.model.options", given=1)
    key = "crop" if data.crop else "height" if 0 < data.height < data.size else "size"
    at_least(f"{where}.data.{key}, for the backbone {model.backbone},", getattr(data, key), backbone.smallest)
