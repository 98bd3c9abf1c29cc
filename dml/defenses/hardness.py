"""Hardness manipulation, the defence of Zhou and Patel (CVPR 2022, arXiv 2203.01439)."""

import torch
from torch import Tensor, nn

from dml.common.checks import at_least, known
from dml.common.table import find
from dml.defenses.adversarial import Start
from dml.defenses.roles import ROLES, RolesDefense
from dml.losses.base import Loss, difference, distance
from dml.losses.miners import MINERS
from dml.losses.miners.base import Miner, Tuples

LGA = "lga"


class Hardness(RolesDefense):
    """Trains on tuples that are raised to a given hardness and no further.

    The hardness of a tuple is H = d(a, p) - d(a, n). Anchor, positive and negative are perturbed jointly to minimise
    max(0, H_D - H~)^2: a tuple grows harder until it reaches the destination H_D, then stays there. The loss costs
    (a~, p~, n~). The last step may lead past the destination: the fewer and longer the steps, the further. The paper
    takes 8 or 32 steps of 1/255.

    With ``lga``, the linear gradual adversary, H_D = -gamma * min(ceiling, l) / ceiling, where l is the mean
    adversarial loss of the previous step: the lower the loss, the harder the tuples. With the name of a miner, H_D is
    the hardness of the clean tuple that this miner selects for the same anchor.

    The intra-class structure term adds ics * max(0, d(a, a~) - d(a, p)) to each tuple: the perturbed anchor should be
    nearer to the clean one than the positive is. The clean a and p come from the training pass, with gradient: without
    it the term could only pull a~ back to a, and never spread the clean images of a class apart.

    Args:
        eps: radius of the l-inf ball, of pixels in [0, 1].
        steps: PGD steps, from a uniform random start.
        destination: ``lga``, or a key of :data:`dml.losses.miners.MINERS`.
        ics: weight of the intra-class structure term, 0.5 in the paper; 0 leaves it out.
        gamma: of ``lga``: H_D is -gamma while the loss is high. The paper sets it to the margin of the triplet loss.
        ceiling: of ``lga``: a loss at or above it counts as high. The paper sets it to gamma; losses on another scale
            need another value.
        step_size: of a step, pixel units; ``2 * eps / steps`` if None.
        ramp: share of the training over which the radius, and the step with it, grows from 0.
        noise: see :class:`dml.defenses.adversarial.Adversarial`.

    Attributes:
        last: mean adversarial loss of the previous step, without the intra-class term; at first the ceiling.

    Raises:
        ValueError: a setting is out of range, or the destination is unknown.
    """

    last: Tensor

    def __init__(
        self,
        eps: float = 8 / 255,
        steps: int = 8,
        destination: str = LGA,
        ics: float = 0.0,
        gamma: float = 0.2,
        ceiling: float = 0.2,
        step_size: float | None = None,
        ramp: float = 0.0,
        noise: Start = None,
    ) -> None:
        super().__init__(eps, steps, step_size, ramp, noise)
        known("destination", destination, [LGA, *MINERS])
        at_least("ics", ics, 0)
        at_least("gamma", gamma, 0)
        if not ceiling > 0:
            raise ValueError(f"ceiling is {ceiling}; it must be above 0")
        self.destination = destination
        self._select: Miner | None = None if destination == LGA else find(MINERS, destination, "destination")
        self.ics = ics
        self.gamma = gamma
        self.ceiling = ceiling
        self.register_buffer("last", torch.tensor(float(ceiling)))

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Loss,
        generator: torch.Generator,
        progress: float = 1.0,
    ) -> Tensor:
        """Return the losses of hardened tuples (T,); see :meth:`dml.defenses.base.Defense.forward`."""
        embeddings = model(images)
        if not self.ics:
            embeddings = embeddings.detach()  # no clean embedding enters the loss: its graph can go
        tuples = self.mine(embeddings, labels, loss, generator)
        goal = self._goal(embeddings.detach(), labels, tuples, generator)

        def closeness(*changed: Tensor) -> Tensor:
            return -(goal - difference(*changed)).clamp_min(0).square()

        roles = self.embed(model, images, tuples, embeddings, ROLES, closeness, generator, progress)
        values = loss(**roles)
        if self.training:
            self.last.copy_(values.detach().mean())
        if self.ics:
            anchor, positive, _ = tuples.pick(embeddings)
            beyond = distance(anchor, roles["anchor"]) - distance(anchor, positive)
            values = values + self.ics * beyond.clamp_min(0)
        return values

    def _goal(self, embeddings: Tensor, labels: Tensor, tuples: Tuples, generator: torch.Generator) -> Tensor:
        """Return H_D: one for all tuples, or one per tuple (T,)."""
        if self._select is None:
            return -self.gamma * (self.last / self.ceiling).clamp(0, 1)
        mined = self._select(embeddings, labels, generator)
        # Matched by anchor: a loss may order its tuples in another way, or leave anchors out.
        by_row = embeddings.new_full((len(embeddings),), -torch.inf)
        by_row[mined.anchor] = difference(*mined.pick(embeddings))
        return by_row[tuples.anchor]
