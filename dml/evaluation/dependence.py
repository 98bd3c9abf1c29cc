"""How a perturbation that is made for one tuple acts on the other tuples of its batch (arXiv 2102.07265)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dml.common.randomness import torch_generator
from dml.defenses.joint import Joint
from dml.defenses.robust import Robust
from dml.evaluation.statistics import over_seeds
from dml.losses.base import TupleLoss, difference
from dml.losses.miners.base import Tuples

ROLES = Tuples._fields
ROUNDING = 1e-6  # a change of a distance that is no change
MEASURED = ("rises", "falls", "change", "own", "shared", "lowers")
"""Columns of :func:`batch_changes`, see :func:`changes`."""


class Perturbed(NamedTuple):
    """What a defence trains on.

    Attributes:
        tuples: that the loss is taken over.
        images: role -> (T, 3, H, W), the perturbed images in that role of each tuple.
        embeddings: role -> (T, D), theirs.
    """

    tuples: Tuples
    images: dict[str, Tensor]
    embeddings: dict[str, Tensor]


class Watched(TupleLoss):
    """A loss that remembers the tuples it selected.

    Args:
        loss: the loss.
        tuples: to give out instead of selecting any.
    """

    def __init__(self, loss: TupleLoss, tuples: Tuples | None = None) -> None:
        super().__init__(loss.classes, loss.dimension, miner=loss.miner)
        self.loss = loss
        self.tuples = tuples
        self.mined: list[Tuples] = []

    def mine(self, embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> Tuples:
        """Select tuples as the loss does; see :meth:`dml.losses.base.TupleLoss.mine`."""
        self.mined.append(self.tuples or self.loss.mine(embeddings, labels, generator))
        return self.mined[-1]

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Return the losses (T,) of the wrapped loss, given the embeddings (T, D) of each role."""
        return self.loss(anchor, positive, negative)


def perturb(
    defense: Robust | Joint,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    loss: TupleLoss,
    generator: torch.Generator,
    tuples: Tuples | None = None,
) -> Perturbed:
    """Let a defence perturb a batch, and return what it would train on.

    Args:
        defense: whose adversary to use.
        model: images -> embeddings (B, D), in evaluation mode.
        images, labels: of the batch, (B, 3, H, W) in [0, 1] and (B,).
        loss: selects the tuples.
        generator: of every draw.
        tuples: to attack instead of selected ones.
    """
    watched, shown = Watched(loss, tuples), []
    hook = model.register_forward_hook(lambda module, given, out: shown.append((given[0].detach(), out.detach())))
    try:
        defense(model, images, labels, watched, generator)
    finally:
        hook.remove()
    used = watched.mined[-1]
    # What a defence trains on is the last that it shows the model: a batch per role, or one batch for all roles.
    if isinstance(defense, Robust):
        roles = [defense.target] if isinstance(defense.target, str) else defense.target
        pairs = dict(zip(roles, shown[-len(roles) :], strict=True))
    else:
        pairs = {role: [each[getattr(used, role)] for each in shown[-1]] for role in defense.targets}
    images, embeddings = ({role: pair[place] for role, pair in pairs.items()} for place in range(2))
    return Perturbed(used, images, embeddings)


@torch.no_grad()
def changes(clean: Tensor, tuples: Tuples, moved: Mapping[str, Tensor], loss: TupleLoss) -> dict[str, float]:
    """Return how perturbed images change the tuples that they were made for, and the tuples that share an image.

    Args:
        clean: (B, D) embeddings of the clean batch.
        tuples: rows of the batch.
        moved: role -> (T, D), embeddings of the perturbed images in that role.
        loss: of a tuple.

    Returns:
        ``rises`` and ``falls``: share of the tuples whose loss does so with all perturbed images in place; ``change``:
        mean change of the loss. The others are about d(a, p) - d(a, n), which no hinge cuts off, and one perturbed
        image at a time. ``own``: mean change of its own tuple; ``shared``: mean change of the other tuples that hold
        the same image, in whatever role, if it is perturbed there in the same way; ``lowers``: share of the images in
        several tuples of which at least one other tuple gets a lower value. NaN where no image is in two tuples.
    """
    base = dict(zip(ROLES, tuples.pick(clean), strict=True))
    before, apart = loss(**base), difference(**base)
    change = loss(**base | dict(moved)) - before
    own, shared, lowers = [], [], []
    for role, embeddings in moved.items():
        own.append(difference(**base | {role: embeddings}) - apart)
        several, lowered = (torch.zeros(len(apart), dtype=torch.bool, device=apart.device) for _ in range(2))
        for place in ROLES:
            meet = getattr(tuples, role)[:, None] == getattr(tuples, place)
            first, second = meet.fill_diagonal_(False).nonzero(as_tuple=True)
            others = {name: value[second] for name, value in base.items()} | {place: embeddings[first]}
            shared.append(difference(**others) - apart[second])
            several[first] = True
            lowered[first[shared[-1] < -ROUNDING]] = True
        lowers.append(lowered[several])
    return {
        "rises": float((change > ROUNDING).float().mean()),
        "falls": float((change < -ROUNDING).float().mean()),
        "change": float(change.mean()),
        "own": float(torch.cat(own).mean()),
        "shared": float(torch.cat(shared).mean()),
        "lowers": float(torch.cat(lowers).float().mean()),
    }


def adversaries(eps: float, steps: int) -> dict[str, Robust | Joint]:
    """Return the adversaries that are compared, by name: each role by itself, and whole images.

    Args:
        eps: radius of the l-inf ball.
        steps: of PGD.
    """
    return {
        "robust": Robust(eps, steps, list(ROLES)),
        "joint": Joint(eps, steps),
        "joint, re-mined after": Joint(eps, steps, remine="after"),
        "joint, re-mined each step": Joint(eps, steps, remine="each"),
    }


def batch_changes(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: TupleLoss,
    compared: Mapping[str, Robust | Joint],
    seed: int,
) -> pd.DataFrame:
    """Return :func:`changes` of every adversary, one row per batch and adversary.

    The robust adversary perturbs each role by itself, so one run gives a row for each role and one for all roles.

    Args:
        model: in evaluation mode.
        batches: images (B, 3, H, W) and labels (B,).
        loss: selects the tuples and costs them.
        compared: adversaries by name.
        seed: of the draws, the same for all adversaries.
    """
    rows = []
    for number, (images, labels) in enumerate(batches):
        with torch.no_grad():
            clean = model(images)
        for name, defense in compared.items():
            found = perturb(defense, model, images, labels, loss, torch_generator(seed, "batch", number))
            parts = {name: found.embeddings}
            if isinstance(defense, Robust):
                parts = {f"{name}, {role}": {role: moved} for role, moved in found.embeddings.items()}
                parts[f"{name}, all roles"] = found.embeddings
            rows += [{"adversary": key, **changes(clean, found.tuples, part, loss)} for key, part in parts.items()]
    return pd.DataFrame(rows, columns=["adversary", *MEASURED])


def means(found: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the mean of every measure over batches, and half of its 95% t-interval as ``<measure>_half``.

    Args:
        found: see :func:`batch_changes`, with further columns.
        by: columns that tell groups apart.

    Returns:
        One row per group. Half an interval is NaN where fewer than two batches have the measure.
    """
    rows = []
    for key, group in found.groupby(list(by), sort=False):
        row = dict(zip(by, key, strict=True))
        for name in MEASURED:
            values = group[name].dropna().tolist()
            mean, low, _ = over_seeds(values) if len(values) > 1 else (group[name].mean(), np.nan, np.nan)
            row |= {name: mean, f"{name}_half": mean - low}
        rows.append(row)
    return pd.DataFrame(rows)


@torch.no_grad()
def occurrences(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: TupleLoss, seed: int) -> np.ndarray:
    """Return in how many tuples each image occurs (N, 3), by role: anchor, positive, negative.

    Args:
        model, batches, loss, seed: see :func:`batch_changes`, whose tuples these are.
    """
    found = []
    for number, (images, labels) in enumerate(batches):
        tuples = loss.mine(model(images), labels, torch_generator(seed, "batch", number))
        found.append(torch.stack([rows.bincount(minlength=len(labels)) for rows in tuples], dim=1))
    return torch.cat(found).cpu().numpy()
