"""Adversarial training on the nearest neighbour: what retrieval is judged by, and what an attacker lowers."""

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from dml.common.checks import at_least
from dml.defenses.adversarial import Adversarial, Start
from dml.losses.base import Loss, pairs
from dml.models.embedder import evaluating
from dml.retrieval.gallery import Gallery
from dml.retrieval.metrics import advantage


class Nearest(Adversarial):
    """Perturbed queries must find an image of their class in the whole clean batch.

    Every image of the batch is a query. PGD raises its 1-NN margin: the similarity to the nearest wrong image minus
    that to the nearest right one, both chosen anew at each step. The cost of the perturbed query is minus the log of
    the probability that its neighbour is right, in the soft nearest neighbours of neighbourhood component analysis
    (Goldberger et al. 2004, equation 4)::

        log(1 + sum over wrong exp(s / temperature) / sum over right exp(s / temperature))

    with similarities s to the clean embeddings of the training pass, the query itself left out. A tuple shows a query
    one negative; here it meets all of the batch, as an attacker's query meets the gallery. The metric loss on the clean
    batch is added with weight ``natural``.

    Args:
        eps: radius of the l-inf ball, of pixels in [0, 1].
        steps: PGD steps, from a uniform random start.
        temperature: of the soft neighbours.
        natural: weight of the metric loss on the clean batch.
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
        temperature: float = 0.1,
        natural: float = 0.0,
        step_size: float | None = None,
        ramp: float = 0.0,
        noise: Start = None,
    ) -> None:
        super().__init__(eps, steps, step_size, ramp, noise)
        at_least("natural", natural, 0)
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        self.temperature = temperature
        self.natural = natural

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Loss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        """Return one cost per query; see :meth:`dml.defenses.base.Defense.forward`.

        A query without a right or a wrong image in the batch is left out.

        Raises:
            ValueError: all are.
        """
        embeddings = model(images)
        right, wrong = pairs(labels, labels, torch.arange(len(labels), device=labels.device))
        usable = right.any(1) & wrong.any(1)
        if not bool(usable.any()):
            raise ValueError("the batch has no tuple; it needs two images of a class, and one of another")
        right, wrong = right[usable], wrong[usable]
        gallery = Gallery(embeddings.detach(), labels)

        def margin(changed: Tensor) -> Tensor:
            queries = model(changed)
            with torch.autocast(images.device.type, enabled=False):  # neighbours differ by less than bfloat16 resolves
                return advantage(queries, gallery, wrong, right)

        with evaluating(model):
            perturbed = self.perturb(images[usable], margin, generator, progress)
        queries = model(perturbed)
        with torch.autocast(images.device.type, enabled=False):
            similarity = queries @ embeddings.T / self.temperature
        ahead = similarity.masked_fill(~wrong, -torch.inf).logsumexp(1)
        behind = similarity.masked_fill(~right, -torch.inf).logsumexp(1)
        costs = softplus(ahead - behind)
        if self.natural > 0:
            costs = costs + self.natural * loss.natural(embeddings, labels, generator).mean()
        return costs
