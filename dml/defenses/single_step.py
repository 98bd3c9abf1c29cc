"""Single-step training on perturbed anchors: VisualPhishNet (Abdelnabi et al. 2020) as arXiv 2102.07265 tells it."""

import torch
from torch import Tensor, nn

from dml.attacks.balls import Linf
from dml.attacks.optimisers.fgsm import fgsm
from dml.common.checks import linf_radius
from dml.defenses.base import Defense
from dml.losses.base import BatchLoss, Loss
from dml.models.embedder import evaluating


class SingleStep(Defense):
    """FGSM on the metric loss itself, over the anchors of half of the tuples; the other half stays clean.

    With a loss on the batch, half of the images are perturbed as queries to the clean batch. The radius is drawn once
    per batch from a normal distribution with standard deviation eps / 2, cut to [0, eps].

    Under the hinge of a loss, a tuple that costs nothing leaves its anchor where it is: with triplets, most of them
    late in training. :class:`dml.defenses.visual_phish_net.VisualPhishNet` moves every anchor.

    Args:
        eps: largest radius of the l-inf ball, of pixels in [0, 1].

    Raises:
        ValueError: eps is out of range.
    """

    def __init__(self, eps: float = 8 / 255) -> None:
        super().__init__()
        linf_radius("eps", eps)
        self.eps = eps

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Loss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        """Return the losses with half of the anchors perturbed; see :meth:`dml.defenses.base.Defense.forward`."""
        embeddings = model(images)
        fixed = embeddings.detach()
        if isinstance(loss, BatchLoss):
            own = torch.arange(len(labels), device=labels.device)
            radius, half = self._draw(len(labels), generator)
            half = half.to(labels.device)

            def objective(changed: Tensor) -> Tensor:
                queries = fixed.index_copy(0, half, model(changed))
                return loss(queries, labels, fixed, labels, own)[half]

            with evaluating(model), evaluating(loss):
                perturbed = fgsm(images[half], objective, Linf(radius))
            return loss(embeddings.index_copy(0, half, model(perturbed)), labels, embeddings, labels, own)
        tuples = loss.mine(fixed, labels, generator)
        anchor, positive, negative = tuples.pick(embeddings)
        radius, half = self._draw(len(anchor), generator)
        half = half.to(labels.device)
        fixed_positive, fixed_negative = positive[half].detach(), negative[half].detach()
        with evaluating(model), evaluating(loss):
            perturbed = fgsm(
                images[tuples.anchor[half]],
                lambda changed: loss(model(changed), fixed_positive, fixed_negative),
                Linf(radius),
            )
        return loss(anchor.index_copy(0, half, model(perturbed)), positive, negative)

    def score(self, scores: dict[str, float]) -> float:
        """Select the epoch by adversarial R@1."""
        return scores["adversarial"]

    def _draw(self, count: int, generator: torch.Generator) -> tuple[float, Tensor]:
        """Draw the radius, and which half of ``count`` rows is perturbed."""
        radius = 0.0
        if self.eps > 0:
            drawn = nn.init.trunc_normal_(torch.empty(()), 0.0, self.eps / 2, 0.0, self.eps, generator=generator)
            radius = float(drawn)
        return radius, torch.randperm(count, generator=generator)[: count // 2]
