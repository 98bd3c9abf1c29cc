"""Attacks on the queries of a search: the worst outcome of each query, chunk by chunk, resumable."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dml.attacks.balls import Ball, radius_text
from dml.attacks.base import Run
from dml.common.files import read_kept, write_columns
from dml.common.processes import shared_out
from dml.common.randomness import torch_generator
from dml.evaluation.outcomes import rows_of
from dml.retrieval.gallery import Queries, at_once
from dml.retrieval.index import Search
from dml.retrieval.metrics import Outcome, disagreement, per_query

CHUNK = 100  # queries attacked at a time
OUTSIDE = 1e-4  # that rounding may put an image outside its ball or [0, 1], pixel units


class Group(NamedTuple):
    """Runs that count as one attack.

    Attributes:
        name: of the attack in the outcomes.
        runs: in order, each spent on the queries that the earlier ones left.
        lowers: the score that the attack lowers, see :class:`dml.attacks.base.Attack`.
    """

    name: str
    runs: list[Run]
    lowers: Literal["r1", "map_r"] = "r1"


class Worst:
    """The worst images found so far for some queries of a search.

    Attributes:
        clean: (B, 3, H, W), the natural images.
        images: (B, 3, H, W), the worst found.
        margin: (B,), exact 1-NN margin of those; a query survives below 0.
        value: (B,), what attacks raise: the margin, or minus MAP@R. At 0 or above nothing is left to attack.
        settled: (B,) bool, queries that no attack is spent on.
    """

    def __init__(self, search: Search, images: Tensor, queries: Queries, lowers: Literal["r1", "map_r"] = "r1") -> None:
        self.search, self.queries, self.lowers = search, queries, lowers
        self.clean, self.images = images, images.clone()
        self.margin, self.value = self._measure(images, queries)
        self.settled = torch.zeros_like(self.margin, dtype=torch.bool)

    def begin(self, larger: "Worst", ball: Ball) -> None:
        """Begin with the images found in a larger ball, moved into this one; what survived there is settled."""
        images = ball.project(larger.images, self.clean)
        self._keep(torch.arange(len(images), device=self.margin.device), images, *self._measure(images, self.queries))
        self.settled = larger.survives

    def advance(self, run: Run, ball: Ball, generator: torch.Generator) -> None:
        """Run an attack on the queries that still survive, and keep the images that are worse than those known.

        Raises:
            ValueError: its images lie outside the ball or [0, 1].
        """
        rows = ((self.value < 0) & ~self.settled).nonzero().squeeze(1)
        if not len(rows):
            return
        queries = self.queries.take(rows)
        images = run(self.clean[rows], queries, ball, generator).detach()
        beyond = ball.length(images - self.clean[rows]).max() - ball.eps, -images.min(), images.max() - 1
        if not all(float(excess) <= OUTSIDE for excess in beyond):
            told = ", ".join(f"{float(excess):.2g}" for excess in beyond)
            raise ValueError(
                f"an attack returned images outside the ball of eps {radius_text(ball.eps)}, below 0 or above 1, by "
                f"{told}; end it with ball.project(perturbed, images)"
            )
        margin, value = self._measure(images, queries)
        self._keep(rows, images, margin, value)

    def merge(self, other: "Worst") -> None:
        """Take over what is worse in another record of the same queries."""
        self._keep(torch.arange(len(self.margin), device=self.margin.device), other.images, other.margin, other.margin)

    @property
    def survives(self) -> Tensor:
        """(B,) bool; a margin that is not a number counts as broken."""
        return self.margin < 0

    @torch.no_grad()
    def outcome(self) -> tuple[Outcome, Tensor]:
        """Return the outcome of the worst images, and where float32 alone would have called a broken query safe."""
        embeddings, gallery = self.search.model(self.images), self.search.gallery
        found = per_query(embeddings, self.queries, gallery)._replace(r1=self.survives)
        if embeddings.dtype == torch.float64:  # then no attack or margin was computed in less
            return found, torch.zeros_like(self.survives)
        return found, disagreement(embeddings, self.queries, gallery)

    def _measure(self, images: Tensor, queries: Queries) -> tuple[Tensor, Tensor]:
        margin = self.search.margin(images, queries)
        if self.lowers == "r1":
            return margin, margin
        with torch.no_grad():
            return margin, -per_query(self.search.model(images), queries, self.search.gallery).map_r

    def _keep(self, rows: Tensor, images: Tensor, margin: Tensor, value: Tensor) -> None:
        worse = ~(value <= self.value[rows])  # a value that is not a number is worse than any
        kept = rows[worse]
        self.images[kept], self.margin[kept], self.value[kept] = images[worse], margin[worse], value[worse]


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
    keep: Callable[[Ball, Tensor], None] | None = None,
    report: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Attack the queries of some rows.

    An attack runs only on the queries that the earlier ones could not break, so the time goes to the hard ones; one
    that lowers MAP@R runs on all of them. A ball lies inside a larger one, so the largest comes first: what no attack
    breaks there is not attacked in a smaller one, see :mod:`dml.evaluation.gates`, and what is found there is tried in
    the smaller one first. The rows of the first group show what it leaves by itself, at smaller radii beside what was
    found at larger ones; those of an attack on MAP@R what it leaves of that, and ``worst`` what all leave together.

    Args:
        search: the model and its gallery.
        rows: numbers of the queries.
        groups: attacks, in the order in which they run.
        balls: of one norm, one per radius.
        seed: of the random starts.
        alone: run every group on all queries at every radius instead, and give rows for each. The smallest ball then
            comes first, and ``worst`` counts what was found in smaller ones, too.
        folder: where finished chunks are kept, see :func:`in_chunks`.
        chunk_size: queries attacked at a time; see :func:`chunk_size_for` for the default.
        keep: receives, chunk by chunk, each ball with the worst images (B, 3, H, W) found in it.
        report: receives one line per chunk.

    Returns:
        One row per query, ball and group (the first one and those on MAP@R by their names, and ``worst``):
        ``query, attack, norm, eps, r1, r_precision, map_r, disagree, margin``. The natural outcome has attack ``none``
        and eps 0. R-precision and MAP@R are those of the images found: an attack that lowers R@1 does not look for the
        lowest. ``disagree`` is 1 where float32 alone would have called a broken query safe. ``margin`` is the exact
        1-NN margin, below 0 where the query survives.
    """

    def work(chunk: np.ndarray) -> pd.DataFrame:
        images, queries = search.images(chunk), search.queries(chunk)

        def table(name: str, ball: Ball, eps: float, found: Worst) -> pd.DataFrame:
            outcome, disagree = found.outcome()
            rows = rows_of(chunk, name, ball.norm, eps, outcome)
            return rows.assign(disagree=disagree.cpu().numpy().astype(int), margin=found.margin.cpu().numpy())

        found: dict[float, list[pd.DataFrame]] = {}
        last: Worst | None = None
        for ball in sorted(balls, key=lambda ball: ball.eps, reverse=not alone):
            worst, tables = Worst(search, images, queries), []
            if last is not None and alone:
                worst.merge(last)
            elif last is not None:
                worst.begin(last, ball)
            for place, group in enumerate(groups):
                apart = alone or group.lowers != worst.lowers  # what is left of R@1 says little about MAP@R
                own = Worst(search, images, queries, group.lowers) if apart else worst
                for number, run in enumerate(group.runs):
                    generator = torch_generator(seed, "attack", int(chunk[0]), ball.norm, ball.eps, group.name, number)
                    own.advance(run, ball, generator)
                if apart or place == 0:
                    tables.append(table(group.name, ball, ball.eps, own))
                if apart:
                    worst.merge(own)
            found[ball.eps] = [*tables, table("worst", ball, ball.eps, worst)]
            last = worst
            if keep is not None:
                keep(ball, worst.images)
        natural = table("none", balls[0], 0.0, Worst(search, images, queries))
        return pd.concat([natural, *(rows for ball in balls for rows in found[ball.eps])], ignore_index=True)

    size = chunk_size or chunk_size_for(search)
    return in_chunks(rows, work, size=size, folder=folder, report=report)


def chunk_size_for(search: Search) -> int:
    """Return how many queries to attack at a time: a hundred, or fewer if the gallery is large, to bound memory."""
    return at_once(search.gallery, CHUNK)


def in_chunks(
    rows: np.ndarray,
    work: Callable[[np.ndarray], pd.DataFrame],
    *,
    size: int,
    folder: Path | None = None,
    verb: str = "attacked",
    report: Callable[[str], None] = print,
) -> pd.DataFrame:
    """Evaluate queries chunk by chunk; a killed evaluation continues after its last finished chunk.

    A chunk whose file is damaged is evaluated again. Processes that work together (:mod:`dml.common.processes`) take
    turns, chunk by chunk; each draws as it would alone, so the outcome of every query is the same.

    Args:
        rows: numbers of the queries.
        work: the rows of a chunk -> its table.
        size: of a chunk.
        folder: where the tables of finished chunks are kept. One folder serves one evaluation: the caller names it by
            all that decides the outcome, and removes it at the end. None keeps nothing.
        verb: what happened to the queries, for the report.
        report: receives one line per chunk of this process, the same whether it was finished before or not.

    Returns:
        All tables below each other.
    """
    tables: list[pd.DataFrame] = []
    finished = 0

    def of(first: int) -> pd.DataFrame:
        nonlocal finished
        chunk = rows[first : first + size]
        file = folder / f"{first:07d}.npz" if folder else None
        table = read_kept(file) if file else None
        if table is None:
            table = work(chunk)
            if file is not None:
                write_columns(file, table)
        tables.append(table)
        finished += len(chunk)
        report(f"{verb} {finished}/{len(rows)} queries{_left(pd.concat(tables))}")
        return table

    whole = pd.concat(shared_out(range(0, len(rows), size), of), ignore_index=True)
    if finished < len(rows):
        report(f"{verb} {len(rows)}/{len(rows)} queries{_left(whole)}")
    return whole


def _left(done: pd.DataFrame) -> str:
    left = done[done["attack"] == "worst"].groupby("eps")["r1"].mean()
    shares = ", ".join(f"{value:.3f} at {radius_text(eps)}" for eps, value in left.items())
    return f", R@1 left: {shares}" if shares else ""
