"""Single-step adversarial training of the anchor, as VisualPhishNet does it (Abdelnabi et al. 2020)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dml.attacks import Linf, pgd
from dml.common.checks import linf_radius
from dml.losses import TupleLoss
from dml.models.embedder import Embedder, evaluating


@dataclass(frozen=True)
class SingleStep:
    """FGSM on the metric loss itself, over the anchors of half of the tuples; the other half stays clean.

    The radius is drawn once a batch from a normal distribution with standard deviation eps / 2, cut to [0, eps].

    Attributes:
        eps: largest radius of the l-inf ball.
    """

    eps: float = 8 / 255

    def __post_init__(self) -> None:
        linf_radius("eps", self.eps)

    def __call__(
        self,
        model: Embedder,
        images: Tensor,
        labels: Tensor,
        tuple_loss: TupleLoss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        embeddings = model(images)
        tuples = tuple_loss.mine(embeddings.detach(), labels, generator)
        anchor, positive, negative = tuples.pick(embeddings)
        if self.eps > 0:
            radius = float(
                nn.init.trunc_normal_(torch.empty(()), 0.0, self.eps / 2, 0.0, self.eps, generator=generator)
            )
        else:
            radius = 0.0
        half = torch.randperm(len(tuples.anchor), generator=generator)[: len(tuples.anchor) // 2].to(labels.device)
        fixed_positive, fixed_negative = positive[half].detach(), negative[half].detach()
        with evaluating(model):
            perturbed = pgd(
                images[tuples.anchor[half]],
                lambda pictures: tuple_loss.cost(model(pictures), fixed_positive, fixed_negative),
                Linf(radius),
                steps=1,
                step_size=radius,
                random_start=False,
                best=False,
                generator=generator,
            )
        anchor = anchor.index_copy(0, half, model(perturbed))
        return tuple_loss.cost(anchor, positive, negative)
