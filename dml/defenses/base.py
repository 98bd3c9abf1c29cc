"""What every defence is: a way to turn a batch into the losses that training minimises."""

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dml.losses.base import Loss

ROUNDING = 0.01  # that images may leave [0, 1] by, as resizing with antialiasing makes them


class Perturbs(NamedTuple):
    """What a defence perturbs.

    Attributes:
        elements: roles of a tuple; ``query`` or ``image`` of a batch.
        shared: what one perturbation serves: one role in one tuple (``slot``) or in all tuples of the image (``role``),
            all roles of one ``tuple``, all tuples of an ``image``; one ``query``, or the whole ``batch``.
        remine: when tuples are selected again: ``none``, ``after`` perturbing, at ``each`` step; None without tuples.
    """

    elements: tuple[str, ...]
    shared: Literal["slot", "role", "tuple", "image", "query", "batch"]
    remine: str | None = "none"


class Defense(nn.Module, ABC):
    """A way to train. State that it keeps between steps lives in buffers or its extra state, which checkpoints hold.

    The arguments of the constructor are the settings that params.yaml may give. The first batch is checked: with
    images that were normalised before, a defence would train on nonsense without an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self._first = self.register_forward_pre_hook(_refuse_other_ranges, with_kwargs=True)

    @abstractmethod
    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Loss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        """Return the losses of one training step; the training loop takes their mean.

        The model and the loss come in training mode and are left in it.

        Args:
            model: images -> unit embeddings (B, D).
            images: the clean batch (B, 3, H, W) in [0, 1].
            labels: (B,), 0 to loss.classes - 1.
            loss: selects tuples, or compares a batch with a reference set; its parameters are trained too.
            generator: used for every random draw.
            progress: share of the training that is done, from 0 to 1.

        Returns:
            Differentiable losses: one per tuple (T,) or one per query (B,).

        Raises:
            ValueError: the defence cannot work with this kind of loss.
        """

    def perturbs(self, tuples: bool) -> Perturbs | None:
        """Return what the defence perturbs, for a comparison of defences that differ in this; None leaves it out.

        Args:
            tuples: whether the loss is on tuples; otherwise it costs whole queries.
        """
        return None

    def score(self, scores: dict[str, float]) -> float:
        """Return what selects the epoch to keep, higher is better: natural R@1 unless a defence says otherwise.

        Args:
            scores: of the epoch on held-out training classes: ``natural`` and ``adversarial`` R@1.
        """
        return scores["natural"]


def _refuse_other_ranges(defense: Defense, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Check the images of a first batch, and of no later one.

    Raises:
        ValueError: they lie outside [0, 1].
    """
    images = named["images"] if "images" in named else given[1]
    low, high = float(images.min()), float(images.max())
    if not -ROUNDING <= low <= high <= 1 + ROUNDING:
        raise ValueError(
            f"the images lie in [{low:.2f}, {high:.2f}]; defences move pixels in [0, 1], so the model must normalise "
            "them itself, as dml.wrap(model, mean=..., std=...) does"
        )
    defense._first.remove()
