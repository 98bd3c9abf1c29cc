"""What the defences share that perturb whole tuples: PGD on several roles of every tuple at once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dml.defenses.adversarial import Adversarial
from dml.losses.base import Loss, TupleLoss
from dml.losses.miners.base import Tuples
from dml.models.embedder import evaluating

ROLES = Tuples._fields

RoleObjective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Embeddings (T, D) of anchors, positives and negatives -> (T,); higher is harder for the model."""


class RolesDefense(Adversarial):
    """A defence whose adversary perturbs some roles of every tuple jointly.

    Tuples are mined on the clean embeddings of the training pass. The perturbed roles move together, from a uniform
    random start in the l-inf ball; the other roles keep their clean embeddings. A perturbation belongs to one role of
    one tuple: an image that occurs in several tuples or roles is perturbed separately in each. PGD runs with BatchNorm
    in evaluation mode, as an attacker would. (In the code of Zhou and Patel it begins at the image itself.)
    """

    def mine(self, embeddings: Tensor, labels: Tensor, loss: Loss, generator: torch.Generator) -> Tuples:
        """Return the tuples that the loss selects, given the embeddings (B, D) of the clean batch.

        Raises:
            ValueError: the loss has no tuples.
        """
        if not isinstance(loss, TupleLoss):
            raise ValueError(
                f"{type(self).__name__} perturbs the roles of tuples; {type(loss).__name__} costs whole queries: "
                "use robust with target 'query', single_step, joint, est, nearest, trades or fare"
            )
        return loss.mine(embeddings.detach(), labels, generator)

    def embed(
        self,
        model: nn.Module,
        images: Tensor,
        tuples: Tuples,
        embeddings: Tensor,
        perturbed: Sequence[str],
        objective: RoleObjective,
        generator: torch.Generator,
        progress: float,
    ) -> dict[str, Tensor]:
        """Perturb the images of some roles, and return the embeddings (T, D) of every role for the loss.

        Args:
            model: in training mode.
            images: the clean batch (B, 3, H, W).
            tuples: rows of the batch.
            embeddings: (B, D) of the clean batch, from the training pass.
            perturbed: the roles to perturb.
            objective: what PGD maximises.
            generator: of the random start.
            progress: share of the training that is done.

        Returns:
            By role: embeddings of the perturbed images from one pass in training mode, else clean ones.
        """
        clean = dict(zip(ROLES, tuples.pick(embeddings), strict=True))
        fixed = {role: value.detach() for role, value in clean.items()}

        def by_role(stacked: Tensor) -> dict[str, Tensor]:
            return dict(zip(perturbed, model(stacked).chunk(len(perturbed)), strict=True))

        def per_image(stacked: Tensor) -> Tensor:
            # PGD wants one value per image. Repeating the tuple's value scales its gradient, but no sign.
            return objective(*(fixed | by_role(stacked)).values()).repeat(len(perturbed))

        stacked = torch.cat([images[getattr(tuples, role)] for role in perturbed])
        with evaluating(model):
            stacked = self.perturb(stacked, per_image, generator, progress, " ".join(perturbed))
        return clean | by_role(stacked)
