"""What an attacker leaves of retrieval: adversarial R@1 and MAP@R per query, and intervals over queries."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dml.attacks.balls import Ball, Linf, radius_text
from dml.attacks.methods import Attack
from dml.common.files import atomic
from dml.common.randomness import numpy_generator, torch_generator
from dml.data import Split
from dml.data.sampling import to_float
from dml.evaluation.statistics import wilson
from dml.models import embedder as models
from dml.retrieval.index import Outcome, Queries, Search, at_once, per_query, ranking, recall_at

CHUNK = 100  # queries attacked at a time

Group = tuple[str, list[Attack]]
"""A name, and the attacks run under it one after the other."""


class Worst:
    """The worst pictures known for some queries of a search."""

    def __init__(self, search: Search, images: Tensor, queries: Queries) -> None:
        self.search, self.queries = search, queries
        self.clean = images
        self.images = images.clone()
        self.margin = search.margin(images, queries)

    def advance(self, attack: Attack, ball: Ball, generator: torch.Generator) -> None:
        """Run an attack on the queries that are not fooled yet, and keep what is worse than the known."""
        rows = (self.margin < 0).nonzero().squeeze(1)
        if not len(rows):
            return
        queries = self.queries.take(rows)
        images = attack(self.clean[rows], queries, ball, generator)
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
    search: Search,
    rows: np.ndarray,
    groups: Sequence[Group],
    balls: Sequence[Ball],
    *,
    seed: int,
    alone: bool = False,
    folder: Path | None = None,
    chunk_size: int | None = None,
    report: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Run attacks on the queries of some rows.

    Every radius is attacked on its own. An attack is run only on the queries that those before it could not fool,
    so the time goes to the hard ones; the rows of the first group say what it leaves by itself, and ``worst`` what
    all of them leave together.

    Args:
        search: the model and its gallery.
        rows: of the queries in the split.
        groups: of attacks, in the order in which they are run.
        balls: one a radius.
        seed: of the random starts.
        alone: run every group on all queries instead, and give rows for each.
        folder: where finished chunks are kept, see :func:`in_chunks`.
        chunk_size: queries attacked at a time; see :func:`chunk_size_for` for the default.
        report: receives a line a chunk of queries.

    Returns:
        One row a query, ball and group (the first one by its name, and ``worst``):
        ``query, attack, norm, eps, r1, r_precision, map_r``; the natural outcome has attack ``none`` and eps 0. The
        R-precision and MAP@R of attacks that aim at R@1 are those of the pictures found, not the worst there are.
    """

    def work(chunk: np.ndarray) -> pd.DataFrame:
        images, queries = to_float(search.split.images[chunk], models.device_of(search.model)), search.queries(chunk)
        natural = Worst(search, images, queries)
        table = [rows_of(chunk, "none", balls[0].norm, 0.0, natural.outcome())]
        for ball in balls:
            worst = Worst(search, images, queries)
            for place, (name, methods) in enumerate(groups):
                own = Worst(search, images, queries) if alone else worst
                for number, method in enumerate(methods):
                    generator = torch_generator(seed, "attack", int(chunk[0]), ball.norm, ball.eps, name, number)
                    own.advance(method, ball, generator)
                if alone or place == 0:
                    table.append(rows_of(chunk, name, ball.norm, ball.eps, own.outcome()))
                if alone:
                    ahead = own.margin > worst.margin
                    worst.images[ahead], worst.margin[ahead] = own.images[ahead], own.margin[ahead]
            table.append(rows_of(chunk, "worst", ball.norm, ball.eps, worst.outcome()))
        return pd.concat(table, ignore_index=True)

    size = chunk_size or chunk_size_for(search)
    return in_chunks(rows, work, size=size, folder=folder, report=report)


def chunk_size_for(search: Search) -> int:
    """Queries attacked at a time: a hundred, fewer with a large gallery so that memory does not grow with it."""
    return at_once(search.gallery, CHUNK)


def in_chunks(
    rows: np.ndarray,
    work: Callable[[np.ndarray], pd.DataFrame],
    *,
    size: int,
    folder: Path | None = None,
    report: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Evaluate queries a chunk at a time; a killed evaluation goes on after its last finished chunk.

    Args:
        rows: of the queries in the split.
        work: rows of a chunk -> its table.
        size: of a chunk.
        folder: where the tables of finished chunks are kept, one folder for one evaluation (see :func:`fingerprint`);
            the caller removes it when all is written. None keeps nothing.
        report: receives a line a chunk.

    Returns:
        All tables below each other.
    """
    tables: list[pd.DataFrame] = []
    for first in range(0, len(rows), size):
        chunk = rows[first : first + size]
        file = folder / f"{first:07d}.pkl" if folder else None
        if file is not None and file.exists():
            tables.append(pd.read_pickle(file))
            word = "resumed"
        else:
            tables.append(work(chunk))
            word = "attacked"
            if file is not None:
                with atomic(file) as partial:
                    tables[-1].to_pickle(partial)
        report(f"{word} {first + len(chunk)}/{len(rows)} queries{_left(pd.concat(tables))}")
    return pd.concat(tables, ignore_index=True)


def _left(done: pd.DataFrame) -> str:
    worst = done[done["attack"] == "worst"]
    left = worst.groupby("eps")["r1"].mean()
    return (
        ", R@1 left: " + ", ".join(f"{value:.3f} at {radius_text(eps)}" for eps, value in left.items())
        if len(left)
        else ""
    )


def fingerprint(search: Search, rows: np.ndarray, *settings: object) -> str:
    """Of all that an evaluation depends on (model, queries, settings, this package), to resume no other."""
    digest = hashlib.sha256(repr((settings, rows.tolist())).encode())
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(source.read_bytes())
    digest.update(models.digest(search.model).encode())
    for part in search.gallery:
        digest.update(part.cpu().numpy().tobytes())
    return digest.hexdigest()[:24]


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
def examples(search: Search, rows: np.ndarray, groups: Sequence[Group], eps: float, *, seed: int) -> Examples:
    """Attack the queries of some rows in one l-inf ball and keep the pictures."""
    queries = search.queries(rows)
    worst = Worst(search, to_float(search.split.images[rows], models.device_of(search.model)), queries)
    for name, methods in groups:
        for place, method in enumerate(methods):
            worst.advance(method, Linf(eps), torch_generator(seed, "examples", eps, name, place))
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
    """One example as ``plots.fooled_search`` takes it: query, perturbed, retrieved before and after."""
    right = split.labels[shown.rows[place]]

    def retrieved(rows: np.ndarray) -> list[tuple[np.ndarray, bool]]:
        return [(split.images[row], bool(split.labels[row] == right)) for row in rows]

    return shown.clean[place], shown.perturbed[place], retrieved(shown.before[place]), retrieved(shown.after[place])


def telling_examples(split: Split, shown: Examples, count: int) -> list[int]:
    """Places of ``count`` examples of different classes: those whose natural query finds the most right items, the
    first of them before all others.
    """
    labels = split.labels[shown.rows]
    right = split.labels[shown.before] == labels[:, None]
    order = np.lexsort((right.sum(axis=1), right[:, 0])).tolist()  # the best come last
    best = {labels[place]: place for place in order}  # the last of a class stays
    return sorted(best.values(), key=order.index, reverse=True)[:count]


def natural_scores(search: Search) -> pd.Series:
    """Natural R@1, R@2, R@4, R@8, R-precision and MAP@R, every image of the split being a query."""
    outcome = search.natural()
    scores = {"queries": len(search.split), "r1": float(outcome.r1.double().mean())}
    queries = search.queries(np.arange(len(search.split)))
    for k in (2, 4, 8):
        scores[f"r{k}"] = float(recall_at(search.gallery.embeddings, queries, search.gallery, k).double().mean())
    scores |= {name: float(getattr(outcome, name).double().mean()) for name in ("r_precision", "map_r")}
    return pd.Series(scores, dtype=object, name="natural")


def save(outcomes: pd.DataFrame, shown: Examples | None, folder: Path) -> None:
    """Write ``outcomes.csv`` and, if there are any, ``examples.npz`` to a folder, all or nothing."""
    with atomic(folder) as partial:
        partial.mkdir()
        outcomes.to_csv(partial / "outcomes.csv", index=False, float_format="%.6f")
        if shown is not None:
            shown.write(partial / "examples.npz")


def summarise(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Mean outcomes of :func:`attack`, a row an attack and radius, R@1 with its 95% Wilson interval.

    Returns:
        ``attack, norm, eps, queries, r1, r1_low, r1_high, map_r``.
    """
    rows = []
    for (norm, eps, name), group in outcomes.groupby(["norm", "eps", "attack"], sort=True):
        low, high = wilson(int(group["r1"].sum()), len(group))
        mean = group[["r1", "map_r"]].mean()
        rows.append((name, norm, eps, len(group), mean["r1"], low, high, mean["map_r"]))
    return pd.DataFrame(rows, columns=["attack", "norm", "eps", "queries", "r1", "r1_low", "r1_high", "map_r"])


def standing(outcomes: pd.DataFrame, attack: str = "worst") -> dict[str, str]:
    """For each radius, a character a query in the order of the rows: 1 if it stood, 0 if it was fooled."""
    rows = outcomes[outcomes["attack"] == attack]
    return {f"{eps:.6f}": "".join(map(str, group["r1"])) for eps, group in rows.groupby("eps")}


def rows_of(queries: np.ndarray, attack: str, norm: str, eps: float, outcome: Outcome) -> pd.DataFrame:
    """Per-query outcomes as rows of :func:`attack`'s table."""
    return pd.DataFrame(
        {
            "query": queries,
            "attack": attack,
            "norm": norm,
            "eps": eps,
            "r1": outcome.r1.cpu().numpy().astype(int),
            "r_precision": outcome.r_precision.cpu().double().numpy(),
            "map_r": outcome.map_r.cpu().double().numpy(),
        }
    )
