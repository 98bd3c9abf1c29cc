"""FARE (Schlarmann et al. 2024, "Robust CLIP"): perturbed images keep the embeddings of natural training."""

import math
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dml.defenses.adversarial import Adversarial, Start
from dml.losses.base import Loss, squared_distance
from dml.models.embedder import evaluating


class FARE(Adversarial):
    """Natural training, then fine-tuning without labels on ||f(x~) - f0(x)||^2.

    For the first share ``natural`` of the training, the loss is that of the clean batch. Then the defence copies the
    model's weights. From there on f0 is the model with these weights, in evaluation mode, and PGD moves the embedding
    of each image x as far as possible from f0(x), with BatchNorm in evaluation mode. Neither the labels nor the metric
    loss take part, so a loss's own parameters no longer change.

    With ``natural`` 0 the copy is the model that training starts from, for pretrained weights. That is the paper's
    setting: it fine-tunes CLIP at radii 2/255 and 4/255, with 10 steps of 1/255 and momentum. Its embeddings are not
    normalised; here they have unit length, and PGD has no momentum.

    Args:
        eps: radius of the l-inf ball, of pixels in [0, 1].
        steps: PGD steps, from a uniform random start: right after the copy the term has no gradient at x itself.
        natural: share of the training that is natural, 0 or more and below 1.
        step_size: of a step, pixel units; ``2 * eps / steps`` if None.
        noise: see :class:`dml.defenses.adversarial.Adversarial`.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        eps: float = 8 / 255,
        steps: int = 10,
        natural: float = 0.5,
        step_size: float | None = None,
        noise: Start = None,
    ) -> None:
        super().__init__(eps, steps, step_size, noise=noise)
        if not 0 <= natural < 1:
            raise ValueError(f"natural is {natural}; it must be at least 0 and below 1")
        self.natural = natural
        self.original: dict[str, Tensor] = {}

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Loss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        """Return the natural losses, or one squared distance per image (B,) once the natural share is over.

        See :meth:`dml.defenses.base.Defense.forward`.
        """
        if progress < self.natural:
            return loss.natural(model(images), labels, generator)
        if not self.original:
            self.original = _weights(model)
        with evaluating(model):
            clean = self._embed_originally(model, images)
            perturbed = self.perturb(
                images, lambda changed: squared_distance(model(changed), clean), generator, progress
            )
        return squared_distance(model(perturbed), clean)

    def score(self, scores: dict[str, float]) -> float:
        """Select the epoch by adversarial R@1 among those after the copy: before it, training is only natural."""
        return super().score(scores) if self.original else -math.inf

    def get_extra_state(self) -> dict[str, Any]:
        """Return the weights of f0 by name too, none before they are copied."""
        return super().get_extra_state() | {"original": self.original}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`get_extra_state` returned, on any device."""
        super().set_extra_state(state)
        self.original = dict(state["original"])

    @torch.no_grad()
    def _embed_originally(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return f0 of images (B, D)."""
        # A restored checkpoint lies on the CPU.
        self.original = {name: value.to(images.device) for name, value in self.original.items()}
        return functional_call(model, self.original, (images,), strict=True)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's parameters and buffers, by name."""
    return {name: value.detach().clone() for name, value in chain(model.named_parameters(), model.named_buffers())}
