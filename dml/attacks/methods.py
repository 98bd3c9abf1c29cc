"""Attacks ready to run on queries: an objective, and the optimiser that raises it.

An attack takes pictures (B, 3, H, W), their queries, a ball and a generator, and returns perturbed pictures. For
example ``by_apgd(Aims(model, gallery).margin, steps=100)``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dml.attacks.balls import Ball
from dml.attacks.objectives.queries import (
    cross_entropy_objective,
    dlr_objective,
    embedding_shift_objective,
    map_objective,
    margin_objective,
    metric_loss_objective,
    nearest_wrong_classes,
    rank_objective,
    targeted_objective,
)
from dml.attacks.optimisers.apgd import apgd
from dml.attacks.optimisers.carlini_wagner import carlini_wagner
from dml.attacks.optimisers.fgsm import fgsm, r_fgsm
from dml.attacks.optimisers.nes import nes
from dml.attacks.optimisers.pgd import Objective, better, falling_steps, pgd
from dml.attacks.optimisers.square import square
from dml.retrieval.index import Gallery, Queries

Attack = Callable[[Tensor, Queries, Ball, torch.Generator], Tensor]
Aim = Callable[[Tensor, Queries], Objective]
"""Natural pictures and their queries -> what is maximised."""

FOOLED = 1e-4  # value of a margin at which a search may stop; above 0, so that rounding cannot undo it


@dataclass(frozen=True)
class Aims:
    """What can be aimed at in a search: each method takes natural pictures and their queries.

    Attributes:
        model: in evaluation mode.
        gallery: what is searched.
    """

    model: nn.Module
    gallery: Gallery

    def margin(self, images: Tensor, queries: Queries) -> Objective:
        """See :func:`dml.attacks.objectives.queries.margin_objective`; so the others."""
        return margin_objective(self.model, queries, self.gallery)

    def targeted(self, rank: int) -> Aim:
        """The wrong class that is ``rank``-th nearest (from 0) to the natural picture."""

        def aim(images: Tensor, queries: Queries) -> Objective:
            with torch.no_grad():
                target = nearest_wrong_classes(self.model(images), queries, self.gallery, rank + 1)[:, rank]
            return targeted_objective(self.model, queries, self.gallery, target)

        return aim

    def cross_entropy(self, images: Tensor, queries: Queries) -> Objective:
        return cross_entropy_objective(self.model, queries, self.gallery)

    def dlr(self, images: Tensor, queries: Queries) -> Objective:
        return dlr_objective(self.model, queries, self.gallery)

    def map(self, images: Tensor, queries: Queries) -> Objective:
        return map_objective(self.model, queries, self.gallery)

    def ranks(self, images: Tensor, queries: Queries) -> Objective:
        return rank_objective(self.model, queries, self.gallery)

    def embedding_shift(self, images: Tensor, queries: Queries) -> Objective:
        return embedding_shift_objective(self.model, images)

    def metric_loss(self, images: Tensor, queries: Queries) -> Objective:
        return metric_loss_objective(self.model, images, queries, self.gallery)


def by_apgd(aim: Aim, *, steps: int, goal: float | None = None) -> Attack:
    """Auto-PGD."""
    return lambda images, queries, ball, generator: apgd(
        images, aim(images, queries), ball, steps=steps, goal=goal, generator=generator
    )


def by_pgd(aim: Aim, *, steps: int, first: float = 1.0) -> Attack:
    """PGD from a random start, whose steps fall from ``first`` times eps towards 0."""

    def attack(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
        sizes = falling_steps(first * ball.eps, steps)
        return pgd(images, aim(images, queries), ball, steps=steps, step_size=sizes, generator=generator)

    return attack


def by_equal_steps(aim: Aim, *, steps: int, size: float) -> Attack:
    """PGD from a random start with equal steps of ``size`` times eps, as most papers run it."""

    def attack(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
        return pgd(images, aim(images, queries), ball, steps=steps, step_size=size * ball.eps, generator=generator)

    return attack


def by_fgsm(aim: Aim) -> Attack:
    """FGSM."""
    return lambda images, queries, ball, generator: fgsm(images, aim(images, queries), ball)


def by_r_fgsm(aim: Aim) -> Attack:
    """R-FGSM."""
    return lambda images, queries, ball, generator: r_fgsm(images, aim(images, queries), ball, generator=generator)


def by_carlini_wagner(aim: Aim, *, steps: int) -> Attack:
    """Carlini and Wagner's smallest fooling perturbation, then cut to the ball."""
    return lambda images, queries, ball, generator: ball.project(
        carlini_wagner(images, aim(images, queries), steps=steps), images
    )


def by_square(aim: Aim, *, tries: int) -> Attack:
    """Square Attack."""
    return lambda images, queries, ball, generator: square(
        images, aim(images, queries), ball, tries=tries, goal=FOOLED, generator=generator
    )


def by_nes(aim: Aim, *, steps: int) -> Attack:
    """NES with equal steps of a quarter of eps."""
    return lambda images, queries, ball, generator: nes(
        images, aim(images, queries), ball, steps=steps, step_size=ball.eps / 4, generator=generator
    )


def by_noise(aim: Aim, *, draws: int) -> Attack:
    """No search at all: the worst of a few random points of the ball and as many of its corners."""

    @torch.no_grad()
    def attack(images: Tensor, queries: Queries, ball: Ball, generator: torch.Generator) -> Tensor:
        objective = aim(images, queries)
        worst, value = images, objective(images)
        for _ in range(draws):
            inner = ball.start(images, generator)
            corner = ball.project(
                ball.step(images, torch.randn(images.shape, generator=generator).to(images), ball.eps), images
            )
            for trial in (inner, corner):
                worst, value = better(worst, value, trial, objective(trial))
        return worst

    return attack
