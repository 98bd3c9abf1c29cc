"""Single-step adversarial training as the published code of VisualPhishNet does it (Abdelnabi et al. 2020)."""

import torch
from torch import Tensor, nn

from dml.attacks.balls import Linf
from dml.attacks.objectives.tuples import role_objective
from dml.attacks.optimisers.fgsm import fgsm
from dml.defenses.single_step import SingleStep
from dml.losses.base import Loss, TupleLoss
from dml.models.embedder import evaluating

LOWEST = 0.3  # of the largest radius: the authors draw from 0.003 to 0.01


class VisualPhishNet(SingleStep):
    """As :class:`dml.defenses.single_step.SingleStep`, but every anchor of the perturbed half moves, and further.

    The code of the authors (``Train_adv.ipynb``) departs from the account in arXiv 2102.07265 in two ways. FGSM raises
    the triplet loss with a margin of 30, where training has 2.2: in effect without a hinge, d(a~, p) - d(a~, n). Under
    the hinge of training, a tuple that costs nothing would leave its anchor where it is. And the radius of a batch is
    uniform between 0.3 and 1 times the largest, 0.65 on average, where the other draws 0.36.

    The authors fine-tune a network that was trained without perturbations, with squared distances of embeddings that
    are not normalised, on tuples drawn at random. Here the loss, its miner and the start are those of the recipe.

    Args:
        eps: largest radius of the l-inf ball, of pixels in [0, 1].

    Raises:
        ValueError: eps is out of range.
    """

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Loss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        """Return the losses (T,) with half of the anchors perturbed; see :meth:`dml.defenses.base.Defense.forward`.

        Raises:
            ValueError: the loss costs whole queries.
        """
        if not isinstance(loss, TupleLoss):
            raise ValueError(
                f"visual_phish_net perturbs the anchors of tuples; {type(loss).__name__} costs whole queries: use "
                "single_step"
            )
        embeddings = model(images)
        tuples = loss.mine(embeddings.detach(), labels, generator)
        anchor, positive, negative = tuples.pick(embeddings)
        radius, half = self._draw(len(anchor), generator)
        half = half.to(labels.device)
        fixed = [embedding[half].detach() for embedding in (anchor, positive, negative)]
        with evaluating(model):
            perturbed = fgsm(images[tuples.anchor[half]], role_objective(model, "anchor", *fixed), Linf(radius))
        return loss(anchor.index_copy(0, half, model(perturbed)), positive, negative)

    def _draw(self, count: int, generator: torch.Generator) -> tuple[float, Tensor]:
        """Draw the radius, and which half of ``count`` rows is perturbed."""
        share = LOWEST + (1 - LOWEST) * float(torch.rand((), generator=generator))
        return share * self.eps, torch.randperm(count, generator=generator)[: count // 2]
