"""Gates for models from outside, beside those of :mod:`dml.evaluation.gates`.

Models of this repository have the gradients that PyTorch computes. A model from outside may hide a part of them, for
example behind a detached branch or a rounding step, and every attack that follows gradients is then too weak. Who hides
it on purpose can still pass: a loud part with the right gradient covers a silent one.
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dml.api.attack import MAP
from dml.api.checks import along, signs_like
from dml.api.embedding import at_once
from dml.api.similarity import SimilaritySearch
from dml.attacks.balls import Linf, radius_text
from dml.common.randomness import torch_generator
from dml.data.sampling import evenly
from dml.evaluation.gates import Gate
from dml.evaluation.statistics import standard_error

GRADIENT = "gradient differs from finite differences"
IMAGES = 16  # whose gradients are compared
DIRECTIONS = 8  # of each image, more if there are fewer images
# Step sizes of the finite differences, in pixel units: small enough that a network is nearly linear, large enough that
# float32 tells its outputs apart. Half the radius is for models that round pixels and pass gradients straight through.
STEPS = (3e-4, 1e-3)
UNLIKE = 0.1  # 1 - cosine; networks in float32 have up to .03, one that hides half of the image .18 or more


def more_gates(
    search: SimilaritySearch, outcomes: pd.DataFrame, seed: int, report: Callable[[str], None]
) -> pd.DataFrame:
    """Return the gates of this module, as :func:`dml.evaluation.gates.check` returns its own.

    Args:
        search: of the model.
        outcomes: what a list of attacks found, with the attack on MAP@R if it ran.
        seed: of random points.
        report: receives one line per gate.
    """
    rows = np.sort(outcomes["query"].unique())
    found: list[Gate] = []
    for eps, of in outcomes[outcomes["attack"] != "none"].groupby("eps"):
        found += [gradient_gate(search, rows, float(eps), seed), *_map_gate(of, float(eps))]
    for gate in found:
        told = f"{gate.gate}, eps {radius_text(gate.eps)}: {gate.measured:.3f} of at most {gate.limit:.3f}"
        report(told if gate.passed else f"{told}: fails")
    return pd.DataFrame(found, columns=Gate._fields)


def gradient_gate(search: SimilaritySearch, rows: np.ndarray, eps: float, seed: int) -> Gate:
    """Compare gradients with finite differences, at random points of the ball and along random directions.

    An attack whose gradients are not those of the function that it attacks goes astray, even if no gradient is zero.
    ``measured`` is 1 minus the cosine between the two lists of derivatives, at the first step size for which they
    agree, or else at the best one.

    Args:
        search: of the model.
        rows: numbers of the attacked queries.
        eps: radius of the l-inf ball.
        seed: of the random points and directions.
    """
    some = rows[evenly(IMAGES, len(rows))]
    unlike = np.inf
    for step in (*STEPS, max(*STEPS, eps / 2)):
        generator = torch_generator(seed, "gate", "gradients and differences")
        unlike = min(unlike, 1 - _cosine(search, some, eps, step, generator))
        if unlike <= UNLIKE:
            break
    return Gate(GRADIENT, eps, unlike, UNLIKE, unlike <= UNLIKE)


def _cosine(search: SimilaritySearch, rows: np.ndarray, eps: float, step: float, generator: torch.Generator) -> float:
    """The cosine of derivatives by gradients and by differences, over all images and directions."""
    by_gradient, by_difference = [], []
    directions = math.ceil(IMAGES * DIRECTIONS / len(rows))
    for part in torch.from_numpy(rows).split(at_once(search.split.images.shape[1:3], search.gallery.labels.device)):
        inside = Linf(eps).start(search.images(part.numpy()), generator)
        points = inside.clamp(step, 1 - step).requires_grad_(True)  # both ends stay pixels
        with torch.enable_grad():
            (found,) = torch.autograd.grad(along(search.model(points)).sum(), points)
        gradient = found.nan_to_num(0)  # as the attacks do
        for _ in range(directions):
            signs = signs_like(points, generator)
            by_gradient.append((gradient * signs).flatten(1).double().sum(1))
            by_difference.append(_value(search, points + step * signs) - _value(search, points - step * signs))
    return _cosine_of(torch.cat(by_gradient), torch.cat(by_difference))


@torch.no_grad()
def _value(search: SimilaritySearch, images: Tensor) -> Tensor:
    return along(search.model(images).double())


def _cosine_of(first: Tensor, second: Tensor) -> float:
    """0 if all derivatives of one list are 0, or one is not a number."""
    return float(((first @ second) / (first.norm() * second.norm())).nan_to_num(0))


def _map_gate(outcomes: pd.DataFrame, eps: float) -> list[Gate]:
    """The share of queries that survive the suite and that the attack on MAP@R breaks, if that ran."""
    r1 = outcomes.pivot_table(index="query", columns="attack", values="r1")
    if MAP not in r1:
        return []
    share = float(((r1["worst"] == 1) & (r1[MAP] == 0)).mean())
    error = standard_error(int(r1["worst"].sum()), len(r1))
    return [Gate("broken by the attack on MAP@R", eps, share, error, share <= error)]
