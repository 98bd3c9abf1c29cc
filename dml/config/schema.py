"""Plain records of the settings that decide a result, each checked when it is made."""

from dataclasses import dataclass, field
from typing import Any

from dml.common.checks import at_least, known, linf_radius
from dml.training.schedule import Schedule

Settings = dict[str, Any]
"""Constructor arguments by name, as params.yaml gives them."""


class ParamsError(ValueError):
    """A setting that cannot be used; the sentence names its key and says what would be right."""


@dataclass(frozen=True)
class Data:
    """Where a dataset's images come from and how they are prepared.

    Attributes:
        source: how to read it, a key of ``SOURCES``.
        path: file or folder to read, below the project root.
        size: side of a prepared image, pixels; with a crop, its shorter side.
        height: of an image that is ``size`` pixels wide, for whole images that are no squares, as of persons; 0 for a
            central square.
        crop: side of the central part that is searched and attacked, 0 for the whole image; training may see all of it.
        train_fraction: share of the classes, from the first on, that are for training.
        validation_fraction: share of the training classes held out to select an epoch. 0: all of them train, and the
            last epoch is kept.
        options: further arguments of the source.
        origin: one sentence for results/ on where the images come from.
        show_images: whether figures in results/ may show them.
    """

    source: str
    path: str
    size: int
    height: int = 0
    crop: int = 0
    train_fraction: float = 0.5
    validation_fraction: float = 0.2
    options: Settings = field(default_factory=dict)
    origin: str = ""
    show_images: bool = False

    def __post_init__(self) -> None:
        at_least("size", self.size, 8)
        if self.height:
            at_least("height", self.height, 8)
        at_least("crop", self.crop, 0)
        if self.crop > self.size:
            raise ValueError(f"crop is {self.crop}; it must be at most size, {self.size}")
        if self.crop and self.height:
            raise ValueError(f"crop is {self.crop}; with a height it must be 0")
        if not 0 < self.train_fraction < 1:
            raise ValueError(f"train_fraction is {self.train_fraction}; it must lie between 0 and 1")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction is {self.validation_fraction}; it must be at least 0 and below 1")


@dataclass(frozen=True)
class Model:
    """The embedding model.

    Attributes:
        backbone: a key of ``BACKBONES``.
        dimension: length of an embedding; 0 for the backbone's features as they are, without a head.
        weights: what training starts from: ``random``, ``imagenet``, or a file below the project root. params.yaml may
            also say ``robust``, for the file in ``pretrained/``.
        whiten: start with a head that whitens the backbone's features of the training images, not a random one.
        options: further arguments of the backbone.
    """

    backbone: str
    dimension: int
    weights: str = "random"
    whiten: bool = False
    options: Settings = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.dimension or self.whiten:
            at_least("dimension", self.dimension, 2)


@dataclass(frozen=True)
class Validation:
    """How an epoch is judged on held-out training classes.

    Attributes:
        queries: how many of the held-out images are attacked.
        eps: radius of that attack's l-inf ball.
        steps: its PGD steps.
    """

    queries: int
    eps: float
    steps: int

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 1)
        linf_radius("eps", self.eps)
        at_least("steps", self.steps, 1)


@dataclass(frozen=True)
class Recipe:
    """All settings of one dataset.

    Attributes:
        data: its images.
        model: what is trained, the same for every loss and defence.
        validation: how an epoch is judged.
        losses: settings of each loss, by name.
        defenses: settings of each defence, by name.
        schedules: of each defence: the recipe's schedule with what the defence overrides.
    """

    data: Data
    model: Model
    validation: Validation
    losses: dict[str, Settings]
    defenses: dict[str, Settings]
    schedules: dict[str, Schedule]

    def check(self, loss: str, defense: str) -> None:
        """Raise ValueError if the recipe lacks the loss or the defence; the sentence suggests the closest name."""
        known("loss", loss, self.losses)
        known("defense", defense, self.defenses)
