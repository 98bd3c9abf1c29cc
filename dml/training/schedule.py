"""How long and how fast to train, and how training images are changed at random."""

from dataclasses import dataclass
from typing import Literal

from dml.common.checks import at_least
from dml.data.transforms import Augmentation


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: of ``batches`` batches each.
        batches: gradient steps per epoch; 0 for as many as the training images fill.
        classes: in a batch.
        images_per_class: in a batch.
        learning_rate: peak of the one-cycle schedule, or the constant rate.
        loss_learning_rate: the same of what a loss itself learns, such as proxies; 0 for that of the model.
        weight_decay: of the optimiser.
        optimizer: ``adamw``, or ``adam``, whose decay is part of the gradient.
        rate: ``one_cycle``, or ``constant``.
        precision: of the layers, ``float32`` or ``bfloat16``; weights and distances are float32 in both. A device that
            does not compute in bfloat16 takes float32.
        averaging: decay of the running average of the weights that is evaluated and kept; 0 keeps the last weights.
        corrected: let the average forget the weights that training began with: see :meth:`decay`.
        shift: pixels that a training image may move by.
        flip: mirror half of the training images.
        turns: train on quarter turns of every image as further classes, see :func:`dml.data.turning.turned`.
        crop: side of the random part of an image to train on, 0 for the whole image.
        crop_scale: least and greatest share of the image's area in that part.
        freeze_batchnorm: keep BatchNorm at its running statistics, as is usual for pretrained backbones.

    Raises:
        ValueError: a value is out of range, or two of them contradict each other.
    """

    epochs: int
    batches: int
    classes: int
    images_per_class: int
    learning_rate: float = 3e-3
    loss_learning_rate: float = 0.0
    weight_decay: float = 1e-4
    optimizer: Literal["adamw", "adam"] = "adamw"
    rate: Literal["one_cycle", "constant"] = "one_cycle"
    precision: Literal["float32", "bfloat16"] = "float32"
    averaging: float = 0.0
    corrected: bool = False
    shift: int = 0
    flip: bool = False
    turns: bool = False
    crop: int = 0
    crop_scale: tuple[float, float] = (0.08, 1.0)
    freeze_batchnorm: bool = False

    def __post_init__(self) -> None:
        at_least("epochs", self.epochs, 1)
        for name in ("classes", "images_per_class"):  # a tuple needs a positive and a negative
            at_least(name, getattr(self, name), 2)
        for name in ("loss_learning_rate", "weight_decay", "averaging", "shift", "crop", "batches"):
            at_least(name, getattr(self, name), 0)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if not self.averaging < 1:
            raise ValueError(f"averaging is {self.averaging}; it must be below 1")
        if self.crop and self.shift:
            raise ValueError(f"shift is {self.shift}; with a random crop it must be 0")
        if self.crop and self.turns:
            raise ValueError("turns is true; with a random crop it must be false")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale is {list(self.crop_scale)}; it must be two shares of 1, the smaller first")

    @property
    def augmentation(self) -> Augmentation:
        """How training images are changed at random."""
        return Augmentation(shift=self.shift, flip=self.flip, crop=self.crop, crop_scale=self.crop_scale)

    def decay(self, steps: int) -> float:
        """Return the decay of the average after some steps: ``averaging``, or less while a corrected average is young.

        A corrected one takes at most (1 + steps) / (10 + steps), so that early weights do not stay in it.
        """
        return min(self.averaging, (1 + steps) / (10 + steps)) if self.corrected else self.averaging

    def steps(self, images: int) -> int:
        """Return the gradient steps per epoch, given the number of training images."""
        return self.batches or max(1, images // (self.classes * self.images_per_class))
