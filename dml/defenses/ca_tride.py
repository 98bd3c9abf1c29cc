"""Collapse-aware triplet decoupling (CA-TRIDE), the defence of Tian et al. (ICML 2024, arXiv 2312.07364)."""

from functools import partial

import torch
from torch import Tensor, nn

from dml.common.checks import at_least
from dml.defenses.adversarial import Start
from dml.defenses.roles import RolesDefense
from dml.losses.base import Loss, distance
from dml.models.embedder import evaluating


class CATRIDE(RolesDefense):
    """Perturbs the candidates (positive and negative) in one step of the training and the anchor in the next.

    Both perturbations look at the collapseness of the batch, C = W(d(a, p)) - W(d(a, n)), where W is the mean of the
    distances of all tuples, weighted towards the largest (:func:`peak`). Each minimises one value for the whole batch:

    - candidates: max(0, W(d(a, n~)) - W(d(a, p~))), with the anchor clean. It stops when C reaches 0.
    - anchor: max(0, W(d(a~, p)) - W(d(a~, n))) + g * max(0, N - S), with the candidates clean. N is the mean of the
      smaller half of d(a~, n), S the mean of d(a~, a), and g = exp(-max(0, W(d(a~, n)) - W(d(a~, p)))) has no
      gradient.

    The step size grows with the progress of the training, from 0 to ``step_size``; the radius is always ``eps``. The
    authors' PGD starts at the image itself; this one starts at a random point of the ball, as in the other defences.
    Their code has another triplet loss, with a margin that shrinks and a term on the hardest half; here loss and
    miner are those of the recipe.

    Args:
        eps: radius of the l-inf ball, of pixels in [0, 1].
        steps: PGD steps, from a uniform random start.
        lam: of the weights in W. The authors take 10 for CUB200-2011, 9.5 for Cars196 and 2 for SOP.
        step_size: of a step at the end of the training, pixel units; ``2 * eps / steps`` if None.
        noise: see :class:`dml.defenses.adversarial.Adversarial`.

    Attributes:
        turn: what the next step perturbs: 0 for the candidates, 1 for the anchor.

    Raises:
        ValueError: a setting is out of range.
    """

    turn: Tensor

    def __init__(
        self,
        eps: float = 8 / 255,
        steps: int = 16,
        lam: float = 10.0,
        step_size: float | None = None,
        noise: Start = None,
    ) -> None:
        super().__init__(eps, steps, step_size, noise=noise)
        at_least("lam", lam, 0)
        self.lam = lam
        self.register_buffer("turn", torch.tensor(0))

    def reach(self, progress: float) -> tuple[float, float]:
        """Return the radius of the ball and the step size, in pixel units, at this progress (0 to 1)."""
        return self.eps, progress * self.step_size

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Loss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        """Return the losses of perturbed tuples (T,); see :meth:`dml.defenses.base.Defense.forward`."""
        embeddings = model(images)
        tuples = self.mine(embeddings, labels, loss, generator)
        if self.turn:
            # The shift is that of the perturbation alone, so both ends are embedded in evaluation mode.
            with evaluating(model):
                home = model(images).detach()[tuples.anchor]
            perturbed, cost = ("anchor",), partial(anchor_cost, home=home, lam=self.lam)
        else:
            perturbed, cost = ("positive", "negative"), partial(candidates_cost, lam=self.lam)

        def objective(*changed: Tensor) -> Tensor:
            count = len(changed[0])
            return (-cost(*changed) / count).expand(count)  # one value for the batch, spread over its tuples

        roles = self.embed(model, images, tuples, embeddings, perturbed, objective, generator, progress)
        if self.training:
            self.turn.copy_(1 - self.turn)
        return loss(**roles)


def peak(distances: Tensor, lam: float) -> Tensor:
    """Return W, the mean of distances (T,) with weights exp(lam * d); from their mean (lam 0) to their maximum."""
    return (torch.softmax(lam * distances, 0) * distances).sum()


def candidates_cost(anchor: Tensor, positive: Tensor, negative: Tensor, lam: float) -> Tensor:
    """Return what perturbed candidates (T, D) minimise, a scalar: minus the collapseness, down to 0."""
    return (peak(distance(anchor, negative), lam) - peak(distance(anchor, positive), lam)).relu()


def anchor_cost(anchor: Tensor, positive: Tensor, negative: Tensor, home: Tensor, lam: float) -> Tensor:
    """Return what perturbed anchors minimise, a scalar, given their clean embeddings ``home`` (T, D)."""
    to_negative = distance(anchor, negative)
    collapseness = peak(distance(anchor, positive), lam) - peak(to_negative, lam)
    weight = (-(-collapseness.detach()).relu()).exp()
    nearest = to_negative.topk(max(1, len(to_negative) // 2), largest=False).values.mean()
    return collapseness.relu() + weight * (nearest - distance(anchor, home).mean()).relu()
