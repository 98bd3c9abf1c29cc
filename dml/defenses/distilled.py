"""Robust distillation: perturbed images take the embeddings that a teacher gives the natural ones."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dml.common.checks import at_least
from dml.common.randomness import seeded_global, torch_generator
from dml.defenses.adversarial import Adversarial, Start
from dml.losses.base import Loss, squared_distance
from dml.models.backbones.lite0_stages import efficientnet_lite0
from dml.models.embedder import evaluating

DIMENSION = 1280  # of the teacher's embedding
MEAN, STD = 0.5, 0.5  # pixels as the teacher was trained on them


class Distilled(Adversarial):
    """Training without labels on ||f(x~) - t(x)||^2, t(x) being the embedding of a teacher.

    After adversarially robust distillation (Goldblum et al. 2020, arXiv 1905.09747), which trains a classifier on a
    robust teacher's outputs and on labels. Here the teacher was trained naturally, its embeddings are what is learnt,
    and labels are left out: a label says little about a small image, and less about classes to come, while a teacher
    that has seen many more images says what this one resembles. FARE (:class:`dml.defenses.fare.FARE`) has the same
    term, with the student before its robust training as the teacher.

    The teacher is an EfficientNet-Lite0 with its ImageNet weights. Its embedding is the mean of its last feature map,
    less the mean over the batch, at unit length. A student of another dimension than these 1280 learns their projection
    onto fixed random directions, which keeps angles about as they are. PGD moves the student's embedding of each image
    as far as possible from the teacher's, with BatchNorm in evaluation mode. Neither labels nor metric loss take part.

    Args:
        eps: radius of the l-inf ball, of pixels in [0, 1].
        steps: PGD steps, from a uniform random start.
        side: pixels that the images are resized to for the teacher.
        step_size: of a step, pixel units; ``2 * eps / steps`` if None.
        ramp: share of the training over which the radius, and the step with it, grows from 0.
        noise: see :class:`dml.defenses.adversarial.Adversarial`.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        eps: float = 8 / 255,
        steps: int = 3,
        side: int = 96,
        step_size: float | None = None,
        ramp: float = 0.0,
        noise: Start = None,
    ) -> None:
        super().__init__(eps, steps, step_size, ramp, noise)
        at_least("side", side, 32)
        self.side = side

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Loss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        """Return one squared distance per image (B,); see :meth:`dml.defenses.base.Defense.forward`."""
        teacher = self.features(images)
        teacher = teacher - teacher.mean(0)

        def apart(changed: Tensor) -> Tensor:
            embeddings = model(changed)
            return squared_distance(embeddings, _projected(teacher, embeddings.shape[1]))

        with evaluating(model):
            perturbed = self.perturb(images, apart, generator, progress)
        return apart(perturbed)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the means (B, 1280) of the teacher's last feature maps of images (B, 3, H, W) in [0, 1]."""
        large = F.interpolate(images, size=(self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        return _teacher(images.device).forward_features((large - MEAN) / STD).float().mean((2, 3))


@cache
def _teacher(device: torch.device) -> nn.Module:
    """Outside the defence, so that checkpoints do not hold its weights."""
    with seeded_global(0, "teacher"):  # timm draws weights before the published ones replace them
        network = efficientnet_lite0("imagenet")
    return network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def _projected(features: Tensor, dimension: int) -> Tensor:
    """Features (B, 1280) -> unit embeddings (B, dimension)."""
    if dimension != DIMENSION:
        features = features @ _directions(dimension).to(features)
    return F.normalize(features, dim=1)


@cache
def _directions(dimension: int) -> Tensor:
    """Random vectors (1280, dimension), the same in every run."""
    return torch.randn(DIMENSION, dimension, generator=torch_generator(0, "distilled", dimension))
