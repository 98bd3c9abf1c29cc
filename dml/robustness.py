"""What an attacker leaves of retrieval: adversarial R@1 and MAP@R per query, and intervals over queries."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dml.attacks.balls import radius_text
from dml.attacks.suite import Attack, Suite
from dml.datasets import Split
from dml.models import device_of
from dml.paths import atomic
from dml.randomness import numpy_generator, torch_generator
from dml.retrieval import Outcome, Queries, Search, per_query, ranking, recall_at
from dml.sampling import to_float

CHUNK = 100  # queries attacked at a time


class Worst:
    """The worst pictures known for some queries of a search."""

    def __init__(self, search: Search, images: Tensor, queries: Queries) -> None:
        self.search, self.queries = search, queries
        self.clean = images
        self.images = images.clone()
        self.margin = search.margin(images, queries)

    def advance(self, attack: Attack, eps: float, generator: torch.Generator) -> None:
        """Run an attack on the queries that are not fooled yet, and keep what is worse than the known."""
        rows = (self.margin < 0).nonzero().squeeze(1)
        if not len(rows):
            return
        queries = self.queries.take(rows)
        images = attack(self.clean[rows], queries, eps, generator)
        margin = self.search.margin(images, queries)
        worse = margin > self.margin[rows]
        self.images[rows[worse]] = images[worse]
        self.margin[rows[worse]] = margin[worse]

    def outcome(self) -> Outcome:
        """What the search answers to the worst pictures."""
        with torch.no_grad():
            found = per_query(self.search.model(self.images), self.queries, self.search.gallery)
        return found._replace(r1=self.margin < 0)


def attack(
    search: Search, rows: np.ndarray, suite: Suite, *, seed: int, report: Callable[[str], None] = print
) -> pd.DataFrame:
    """Run a suite on the queries of some rows.

    Every radius is attacked on its own. An attack is run only on the queries that those before it could not fool,
    so the rows of the first attack say what it leaves by itself, and ``worst`` what all of them leave together.

    Args:
        search: the model and its gallery.
        rows: of the queries in the split.
        suite: attacks and their effort.
        seed: of the random starts.
        report: receives a line a chunk of queries.

    Returns:
        One row a query, radius and attack (the first one by its name, and ``worst``):
        ``query, attack, eps, r1, r_precision, map_r``; the natural outcome has attack ``none`` and eps 0. The attacks
        aim at R@1, so R-precision and MAP@R are those of the pictures that they found, not the worst there are.
    """
    table: list[pd.DataFrame] = []
    attacks = suite.attacks(search.model, search.gallery)
    for first in range(0, len(rows), CHUNK):
        chunk = rows[first : first + CHUNK]
        images, queries = to_float(search.split.images[chunk], device_of(search.model)), search.queries(chunk)
        table.append(_rows(chunk, "none", 0.0, Worst(search, images, queries).outcome()))
        for eps in suite.eps:
            worst = Worst(search, images, queries)
            for name, methods in attacks:
                for place, method in enumerate(methods):
                    worst.advance(method, eps, torch_generator(seed, "attack", first, eps, name, place))
                if name == attacks[0][0]:
                    table.append(_rows(chunk, name, eps, worst.outcome()))
            table.append(_rows(chunk, "worst", eps, worst.outcome()))
        done = pd.concat(table)
        left = done[done["attack"] == "worst"].groupby("eps")["r1"].mean()
        report(
            f"attacked {min(first + CHUNK, len(rows))}/{len(rows)} queries, R@1 left: "
            + ", ".join(f"{value:.3f} at {radius_text(eps)}" for eps, value in left.items())
        )
    return pd.concat(table, ignore_index=True)


@dataclass(frozen=True)
class Examples:
    """A few attacked queries to look at, with all images of their classes.

    Attributes:
        eps: radius of the l-inf ball.
        rows: (Q,) rows of the queries in the split.
        clean, perturbed: (Q, H, W, 3) in [0, 1].
        before, after: (Q, 5) rows of the split retrieved, best first; fewer in a smaller gallery.
        start, end: (Q, D) embeddings of the queries, natural and perturbed.
        class_rows: (M,) rows of all images of the queries' classes.
        class_embeddings: (M, D).
    """

    eps: float
    rows: np.ndarray
    clean: np.ndarray
    perturbed: np.ndarray
    before: np.ndarray
    after: np.ndarray
    start: np.ndarray
    end: np.ndarray
    class_rows: np.ndarray
    class_embeddings: np.ndarray

    def write(self, file: Path) -> None:
        """Write everything to one .npz file."""
        with atomic(file) as partial, partial.open("wb") as stream:
            np.savez(stream, **vars(self))

    @classmethod
    def read(cls, file: Path) -> "Examples":
        """Read what :meth:`write` wrote."""
        with np.load(file) as stored:
            return cls(**{**stored, "eps": float(stored["eps"])})


def example_rows(split: Split, *, classes: int, images: int, seed: int) -> np.ndarray:
    """Rows of a few images of a few classes, the same for every model."""
    generator = numpy_generator(seed, "examples")
    labels = np.sort(generator.choice(split.classes, min(classes, len(split.classes)), replace=False))
    found = [np.flatnonzero(split.labels == label) for label in labels]
    return np.concatenate([np.sort(generator.choice(rows, min(images, len(rows)), replace=False)) for rows in found])


@torch.no_grad()
def examples(search: Search, rows: np.ndarray, suite: Suite, eps: float, *, seed: int) -> Examples:
    """Attack the queries of some rows at one radius and keep the pictures."""
    queries = search.queries(rows)
    worst = Worst(search, to_float(search.split.images[rows], device_of(search.model)), queries)
    for name, methods in suite.attacks(search.model, search.gallery):
        for place, method in enumerate(methods):
            worst.advance(method, eps, torch_generator(seed, "examples", eps, name, place))
    class_rows = np.flatnonzero(np.isin(search.split.labels, search.split.labels[rows]))
    start, end = search.gallery.embeddings[queries.own], search.model(worst.images)
    found = Examples(
        eps=eps,
        rows=rows,
        clean=worst.clean.permute(0, 2, 3, 1),
        perturbed=worst.images.permute(0, 2, 3, 1),
        before=ranking(start, queries, search.gallery, min(5, len(search.split) - 1)),
        after=ranking(end, queries, search.gallery, min(5, len(search.split) - 1)),
        start=start,
        end=end,
        class_rows=class_rows,
        class_embeddings=search.gallery.embeddings[torch.from_numpy(class_rows).to(start.device)],
    )
    arrays = {name: value.cpu().numpy() for name, value in vars(found).items() if isinstance(value, Tensor)}
    return replace(found, **arrays)


def example_pictures(split: Split, shown: Examples, place: int) -> tuple:
    """One example as :func:`dml.plots.fooled_search` takes it: query, perturbed, retrieved before and after."""
    right = split.labels[shown.rows[place]]

    def retrieved(rows: np.ndarray) -> list[tuple[np.ndarray, bool]]:
        return [(split.images[row], bool(split.labels[row] == right)) for row in rows]

    return shown.clean[place], shown.perturbed[place], retrieved(shown.before[place]), retrieved(shown.after[place])


def telling_examples(split: Split, shown: Examples, count: int) -> list[int]:
    """Places of ``count`` examples of different classes: those whose natural query finds the most right items."""
    labels = split.labels[shown.rows]
    right = (split.labels[shown.before] == labels[:, None]).sum(axis=1)
    best = {labels[place]: int(place) for place in np.argsort(right, kind="stable")}  # the last of a class stays
    return sorted(best.values(), key=lambda place: -right[place])[:count]


def natural_scores(search: Search) -> pd.Series:
    """Natural R@1, R@2, R@4, R@8, R-precision and MAP@R, every image of the split being a query."""
    outcome = search.natural()
    scores = {"queries": len(search.split), "r1": float(outcome.r1.double().mean())}
    queries = search.queries(np.arange(len(search.split)))
    for k in (2, 4, 8):
        scores[f"r{k}"] = float(recall_at(search.gallery.embeddings, queries, search.gallery, k).double().mean())
    scores |= {name: float(getattr(outcome, name).double().mean()) for name in ("r_precision", "map_r")}
    return pd.Series(scores, dtype=object, name="natural")


def save(outcomes: pd.DataFrame, shown: Examples, folder: Path) -> None:
    """Write ``outcomes.csv`` and ``examples.npz`` to a folder, both or neither."""
    with atomic(folder) as partial:
        partial.mkdir()
        outcomes.to_csv(partial / "outcomes.csv", index=False, float_format="%.6f")
        shown.write(partial / "examples.npz")


def summarise(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Mean outcomes of :func:`attack`, a row an attack and radius, R@1 with its 95% Wilson interval.

    Returns:
        ``attack, eps, queries, r1, r1_low, r1_high, map_r``.
    """
    rows = []
    for (eps, name), group in outcomes.groupby(["eps", "attack"], sort=True):
        low, high = wilson(int(group["r1"].sum()), len(group))
        mean = group[["r1", "map_r"]].mean()
        rows.append((name, eps, len(group), mean["r1"], low, high, mean["map_r"]))
    return pd.DataFrame(rows, columns=["attack", "eps", "queries", "r1", "r1_low", "r1_high", "map_r"])


def pool_seeds(metrics: pd.DataFrame) -> pd.DataFrame:
    """Rows of metrics.csv with the queries of all seeds counted together and their interval taken anew."""
    rows = []
    keys = ["dataset", "loss", "defense", "suite", "attack", "norm", "eps"]
    for key, group in metrics.groupby(keys):
        successes, trials = round((group["r1"] * group["queries"]).sum()), int(group["queries"].sum())
        rows.append((*key, trials, successes / trials, *wilson(successes, trials)))
    return pd.DataFrame(rows, columns=[*keys, "queries", "r1", "r1_low", "r1_high"])


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval for a proportion; 95% by default. It stays inside [0, 1] and is never empty."""
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # The ends are exact where all or none succeed; rounding must not move them off 0 and 1.
    low = (centre - half) / scale if successes else 0.0
    high = (centre + half) / scale if successes < trials else 1.0
    return low, high


def _rows(queries: np.ndarray, attack: str, eps: float, outcome: Outcome) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "query": queries,
            "attack": attack,
            "eps": eps,
            "r1": outcome.r1.cpu().numpy().astype(int),
            "r_precision": outcome.r_precision.cpu().double().numpy(),
            "map_r": outcome.map_r.cpu().double().numpy(),
        }
    )
