"""TRADES (Zhang et al. 2019, algorithm 1), with embeddings in place of class probabilities."""

import torch
from torch import Tensor, nn

from dml.common.checks import at_least
from dml.defenses.adversarial import Adversarial, Start
from dml.losses.base import Loss, squared_distance
from dml.models.embedder import evaluating


class Trades(Adversarial):
    """The natural loss plus beta times a consistency term, ||f(x~) - f(x)||^2.

    The loss itself sees clean images only, so any loss will do. PGD maximises the consistency term of each image, with
    the model in evaluation mode for both embeddings. At x that term has no gradient, so PGD starts from a random point:
    uniform in the ball, where the paper adds Gaussian noise with standard deviation 0.001. In the training pass, as in
    the paper's code, the gradient flows through both embeddings.

    Args:
        eps: radius of the l-inf ball, of pixels in [0, 1].
        steps: PGD steps, from a uniform random start.
        beta: weight of the consistency term, the paper's 1 / lambda. It weighs squared distances here, at most 4, and
            not the paper's divergences of class probabilities.
        step_size: of a step, pixel units; ``2 * eps / steps`` if None.
        ramp: share of the training over which the radius, and the step with it, grows from 0.
        noise: see :class:`dml.defenses.adversarial.Adversarial`.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        eps: float = 8 / 255,
        steps: int = 10,
        beta: float = 6.0,
        step_size: float | None = None,
        ramp: float = 0.0,
        noise: Start = None,
    ) -> None:
        super().__init__(eps, steps, step_size, ramp, noise)
        at_least("beta", beta, 0)
        self.beta = beta

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Loss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        """Return the natural losses, each plus beta times the batch's mean consistency term.

        The loss may give one value per tuple, while each image has its own consistency term. Adding the mean of these
        to every value makes the mean over the values the sum of both means. See
        :meth:`dml.defenses.base.Defense.forward`.
        """
        embeddings = model(images)
        natural = loss.natural(embeddings, labels, generator)
        with evaluating(model):
            clean = model(images).detach()
            perturbed = self.perturb(
                images, lambda changed: squared_distance(model(changed), clean), generator, progress
            )
        return natural + self.beta * squared_distance(model(perturbed), embeddings).mean()
