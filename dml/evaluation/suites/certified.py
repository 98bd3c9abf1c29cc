"""`certified`: queries that no attack within an l2 radius breaks, by randomized smoothing (Cohen et al. 2019)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import ndtri
from torch import Tensor, nn

from dml.attacks.balls import L2
from dml.attacks.objectives.base import Objective
from dml.attacks.objectives.margin import margin_objective
from dml.attacks.optimisers.apgd import apgd
from dml.common.checks import at_least
from dml.common.randomness import normal, torch_generator
from dml.evaluation.engine import chunk_size_for, in_chunks
from dml.evaluation.outcomes import rows_of
from dml.evaluation.statistics import clopper_pearson
from dml.evaluation.suites.base import Evaluation, Suite, check_common
from dml.retrieval.gallery import Gallery, Matches, Queries, at_once
from dml.retrieval.index import Search
from dml.retrieval.metrics import Outcome

BATCH = 500  # noisy images embedded at a time


@dataclass(frozen=True)
class Certified(Suite):
    """The smoothed search answers with the class that is nearest to most noisy copies of the query.

    If the own class has more than half of the votes, with lower confidence bound p, no perturbation of l2 length
    below ``sigma * Phi^-1(p)`` changes the answer, whatever the attack. The outcomes hold three attacks:

    - ``certified``: queries that are right and certified beyond the radius, at radii that so many samples can certify.
    - ``smoothed``: queries that the smoothed search still answers rightly after an attack on it (Auto-PGD on the
      margin, averaged over noise). It bounds ``certified`` from above, up to the confidence.
    - ``base``: queries that the search without smoothing answers rightly after Auto-PGD on its margin.

    Attributes:
        queries, eps: see :class:`dml.evaluation.suites.base.Suite`; radii of the l2 ball.
        sigma: standard deviation of the noise, pixel units. The noisy copies are not cut to [0, 1]: the proof needs
            noise that does not depend on the image.
        samples: noisy copies that a certificate counts; a tenth as many choose the class first.
        alpha: a certificate is wrong with at most this probability.
        steps: of the attacks.
        draws: noisy copies that the attack on the smoothed search averages over.
    """

    queries: int
    eps: tuple[float, ...]
    sigma: float = 0.1
    samples: int = 1000
    alpha: float = 0.001
    steps: int = 20
    draws: int = 4

    def __post_init__(self) -> None:
        check_common(self.queries, self.eps, partial(at_least, least=0))
        for name in ("samples", "steps", "draws"):
            at_least(name, getattr(self, name), 1)
        if not self.sigma > 0:
            raise ValueError(f"sigma is {self.sigma}; it must be above 0")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}; it must lie between 0 and 1")

    @property
    def largest_radius(self) -> float:
        """The radius that is certified if all samples agree; larger ones cannot be certified with so many samples."""
        return self.sigma * float(ndtri(clopper_pearson(self.samples, self.samples, self.alpha)))

    def evaluate(
        self,
        search: Search,
        rows: np.ndarray,
        *,
        seed: int,
        folder: Path | None = None,
        report: Callable[[str], None] = print,
    ) -> Evaluation:
        """See :class:`dml.evaluation.suites.base.Suite`. MAP@R has no certificate: NaN is given in its place."""
        table = in_chunks(
            rows,
            lambda chunk: self._chunk(search, chunk, seed),
            size=max(1, chunk_size_for(search) // self.draws),
            folder=folder,
            report=report,
        )
        radius = table[table["attack"] == "radius"]["eps"]
        scores = {"median_radius": float(radius.median()), "sigma": self.sigma, "alpha": self.alpha}
        return Evaluation(table[table["attack"] != "radius"].reset_index(drop=True), scores)

    def _chunk(self, search: Search, chunk: np.ndarray, seed: int) -> pd.DataFrame:
        model, gallery = search.model, search.gallery
        images, queries = search.images(chunk), search.queries(chunk)

        def table(attack: str, eps: float, right: Tensor) -> pd.DataFrame:
            unknown = torch.full_like(right, torch.nan, dtype=torch.float64)  # neither score has a certificate
            return rows_of(chunk, attack, L2.norm, eps, Outcome(right, unknown, unknown))

        draw = torch_generator(seed, "certificate", int(chunk[0]))
        radius = certified_radius(model, images, queries, gallery, self.sigma, self.samples, self.alpha, draw)
        natural = search.margin(images, queries) < 0
        tables = [table("none", 0.0, natural), table("radius", 0.0, natural).assign(eps=radius.cpu().double().numpy())]
        for eps in self.eps:
            generator = torch_generator(seed, "certified attack", int(chunk[0]), eps)
            if eps < self.largest_radius:
                tables.append(table("certified", eps, radius > eps))
            aim = smoothed_margin(model, queries, gallery, self.sigma, self.draws, generator)
            found = apgd(images, aim, L2(eps), steps=self.steps, generator=generator)
            votes = class_votes(model, found, queries, gallery, self.sigma, max(50, self.samples // 10), generator)
            tables.append(table("smoothed", eps, votes.argmax(1) == _own(queries, gallery)))
            found = apgd(
                images, margin_objective(model, queries, gallery), L2(eps), steps=self.steps, generator=generator
            )
            tables.append(table("base", eps, (search.margin(found, queries) < 0) & natural))
        return pd.concat(tables, ignore_index=True)


def _own(queries: Queries, gallery: Gallery) -> Tensor:
    return torch.searchsorted(gallery.labels.unique(), queries.labels)


@torch.no_grad()
def class_votes(
    model: nn.Module,
    images: Tensor,
    queries: Queries,
    gallery: Gallery,
    sigma: float,
    samples: int,
    generator: torch.Generator,
) -> Tensor:
    """Return (B, C), how many of ``samples`` noisy copies of each image have their nearest neighbour in each class.

    Args:
        model: in evaluation mode.
        images: (B, 3, H, W) of the queries.
        queries, gallery: what is searched for, and where.
        sigma: standard deviation of the noise, pixel units.
        samples: noisy copies of each image.
        generator: of the noise.
    """
    classes, column = gallery.labels.unique(return_inverse=True)
    votes = torch.zeros(len(images), len(classes), dtype=torch.long, device=images.device)
    size = at_once(gallery, BATCH)
    ignored = Matches.of(queries, gallery).ignored
    for row in range(len(images)):
        for first in range(0, samples, size):
            noise = normal((min(size, samples - first), *images.shape[1:]), images, generator)
            similarity = (model(images[row] + sigma * noise) @ gallery.embeddings.T).masked_fill(
                ignored[row], -torch.inf
            )
            votes[row] += torch.bincount(column[similarity.argmax(1)], minlength=len(classes))
    return votes


def certified_radius(
    model: nn.Module,
    images: Tensor,
    queries: Queries,
    gallery: Gallery,
    sigma: float,
    samples: int,
    alpha: float,
    generator: torch.Generator,
) -> Tensor:
    """Return the l2 radius (B,) within which the smoothed search keeps the right class (Cohen et al. 2019, CERTIFY).

    -1 where it answers wrongly or the votes decide nothing. Each radius is too large with probability ``alpha`` at
    most. The noise that chooses the class is not the noise that is counted.

    Args:
        model, images, queries, gallery, sigma, samples, generator: see :func:`class_votes`.
        alpha: see above.
    """
    chosen = class_votes(model, images, queries, gallery, sigma, max(1, samples // 10), generator).argmax(1)
    votes = class_votes(model, images, queries, gallery, sigma, samples, generator)
    right = chosen == _own(queries, gallery)
    radii = []
    for count, fine in zip(votes.gather(1, chosen[:, None]).squeeze(1).tolist(), right.tolist(), strict=True):
        share = clopper_pearson(count, samples, alpha)
        radii.append(sigma * float(ndtri(share)) if fine and share > 0.5 else -1.0)
    return torch.tensor(radii, device=images.device)


def smoothed_margin(
    model: nn.Module, queries: Queries, gallery: Gallery, sigma: float, draws: int, generator: torch.Generator
) -> Objective:
    """Return the 1-NN margin averaged over noisy copies, with the same noise at every call.

    Values of different calls can therefore be compared.

    Args:
        model, queries, gallery, sigma, generator: see :func:`class_votes`.
        draws: noisy copies of each image.
    """
    margin, noise = margin_objective(model, queries, gallery), []

    def objective(images: Tensor) -> Tensor:
        if not noise:
            noise.extend(sigma * normal(images.shape, images, generator) for _ in range(draws))
        return torch.stack([margin(images + some) for some in noise]).mean(0)

    return objective
