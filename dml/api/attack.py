"""A suite on somebody's model, chunk by chunk: outcomes, the images that broke queries, and MAP@R attacked as such."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dml.api.embedding import at_once, wait
from dml.api.similarity import SimilaritySearch
from dml.attacks.balls import L2, Ball, Linf, radius_text
from dml.common.files import DAMAGED, atomic, read_columns, write_columns
from dml.evaluation.engine import attack, chunk_size_for
from dml.evaluation.suites.attacks import AttackSuite
from dml.evaluation.suites.base import Suite
from dml.retrieval.metrics import recall_at

Norm = Literal["linf", "l2"]
"""Of the ball that a perturbed image stays in."""

BALLS: dict[Norm, type[Linf] | type[L2]] = {"linf": Linf, "l2": L2}
NAMES: dict[Norm, str] = {"linf": "l-inf", "l2": "l2"}
RANKS = (2, 4, 8)  # R@k by default
MAP = "map"  # the attack on MAP@R
MAP_STEPS = 20
BLACK_BOX: dict[str, dict[str, int]] = {"noise": {"draws": 10}, "nes": {"steps": 5}, "square": {}}  # need no gradient
LINF_ONLY = ("square",)


class Attacked(NamedTuple):
    """What a suite found.

    Attributes:
        outcomes: see :func:`dml.evaluation.engine.attack`, with R@k as ``r2, r4, ...`` of the images of ``none`` and
            ``worst``, and rows ``map`` of an attack on MAP@R where the suite has none itself.
        images: (B, 3, H, W) float32, the worst image of each kept query at the largest radius, in the order of the
            rows; None for a suite that is not a list of attacks.
        scores: further figures of such a suite, by name.
    """

    outcomes: pd.DataFrame
    images: np.ndarray | None
    scores: Mapping[str, float] = {}


def radius(eps: float, norm: str) -> str:
    """Return a radius as people write it in a norm: 8/255 in l-inf, 0.5 in l2."""
    return radius_text(eps) if norm == "linf" else f"{eps:g}"


def l2_radius(name: str, value: float) -> None:
    """Raise ValueError unless a value can be the radius of an l2 ball, which may exceed 1: it is of a whole image."""
    if not isinstance(value, Real) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}; it must be a number of at least 0")


def checked_ranks(ranks: Sequence[int]) -> tuple[int, ...]:
    """Return the k of each R@k, in order.

    Raises:
        ValueError: one is no whole number, or R@1, which is told in any case.
    """
    if not isinstance(ranks, Sequence) or not all(isinstance(k, Integral) and k > 1 for k in ranks):
        raise ValueError(f"ranks is {ranks!r}; give whole numbers from 2 on, such as (2, 4, 8)")
    return tuple(sorted(set(map(int, ranks))))


def black_box(suite: AttackSuite, norm: str) -> AttackSuite:
    """Return the attacks of a suite that need no gradient; :data:`BLACK_BOX` stand in for the others, if there are."""
    own = {name: item for name, item in suite.attacks.items() if item.get("attack", name) in BLACK_BOX}
    if len(own) == len(suite.attacks):
        return replace(suite, claims=False)
    kinds = {item.get("attack", name) for name, item in own.items()}
    others = BLACK_BOX | {"square": {"tries": suite.gate_tries}}
    others = {name: {"attack": name, **item} for name, item in others.items() if name not in kinds}
    attacks = {f"{name}_" if name in own else name: item for name, item in others.items()} | own
    return replace(suite, attacks=for_norm(attacks, norm), alone=False, claims=False)


def for_norm(attacks: Mapping[str, Mapping[str, Any]], norm: str) -> dict[str, Any]:
    """Return the attacks of a ball's norm, by name: Square's squares are corners of the l-inf ball, and weak in l2."""
    return {key: item for key, item in attacks.items() if norm == "linf" or item.get("attack", key) not in LINF_ONLY}


def with_map(suite: AttackSuite) -> AttackSuite | None:
    """Return the attack on MAP@R for a suite that has gradients and no such attack; else None.

    Raises:
        ValueError: another attack of the suite has its name.
    """
    if MAP in suite.named and suite.named[MAP].lowers != "map_r":
        raise ValueError(f"attacks.{MAP} is the name of the attack on MAP@R; give this attack another name")
    lowers = {item.lowers for item in suite.named.values()}
    gradients = any(item.doubled() is not None for item in suite.named.values())
    if "map_r" in lowers or not gradients:
        return None
    return replace(suite, attacks={MAP: {"steps": MAP_STEPS}}, alone=True, claims=False)


def run(
    search: SimilaritySearch,
    suite: Suite,
    rows: np.ndarray,
    *,
    norm: Norm,
    ranks: Sequence[int],
    seed: int,
    name: str,
    keep: int,
    folder: Path | None,
    report: Callable[[str], None],
) -> Attacked:
    """Attack the queries of some rows.

    A list of attacks runs chunk by chunk. Chunks hold a hundred queries as the pipeline's do, and the same random
    starts, unless the images are so large that fewer go through the model at a time. Any other suite runs as it is.

    Args:
        search: of the model.
        suite: of any kind.
        rows: numbers of the queries.
        norm: of the balls, for a list of attacks.
        ranks: the k of each R@k to tell.
        seed: of the random starts.
        name: of the model, for the report.
        keep: queries, from the first on, whose perturbed images are returned.
        folder: keeps finished chunks, so that a killed evaluation continues; None keeps nothing.
        report: receives one line per chunk.
    """
    if not suite.named:
        told = suite.evaluate(search, rows, seed=seed, folder=folder, report=lambda line: report(f"{name}: {line}"))
        return Attacked(told.outcomes, None, told.scores)
    size = min(chunk_size_for(search), at_once(search.split.images.shape[1:3], search.gallery.labels.device))
    extra, start, fresh = with_map(suite), perf_counter(), 0
    tables: list[pd.DataFrame] = []
    images: list[np.ndarray] = []
    for first in range(0, len(rows), size):
        chunk = rows[first : first + size]
        place = folder / f"{first:07d}" if folder else None
        found = None if place is None or not place.exists() else _kept(place, report)
        if found is None:
            fresh += len(chunk)
            found = _chunk(search, suite, extra, chunk, norm, ranks, seed)
            if place is not None:
                with atomic(place) as partial:
                    write_columns(partial / "outcomes.npz", found.outcomes)
                    np.savez(partial / "images.npz", images=found.images)
        tables.append(found.outcomes)
        images.append(found.images[: max(0, keep - first)].copy())  # a view would hold all of them
        done = first + len(chunk)
        left = _left(pd.concat(tables))
        told = wait((perf_counter() - start) / fresh * (len(rows) - done)) if fresh and done < len(rows) else ""
        report(f"{name}: attacked {done}/{len(rows)} queries{left}{told}")
    return Attacked(pd.concat(tables, ignore_index=True), np.concatenate(images))


def _kept(place: Path, report: Callable[[str], None]) -> Attacked | None:
    """What an earlier, stopped run found for a chunk; None if that is damaged."""
    try:
        with np.load(place / "images.npz", allow_pickle=False) as stored:
            return Attacked(read_columns(place / "outcomes.npz"), stored["images"])
    except DAMAGED:
        report(f"{place} is damaged; its queries are attacked again")
        return None


def _chunk(
    search: SimilaritySearch,
    suite: AttackSuite,
    extra: AttackSuite | None,
    chunk: np.ndarray,
    norm: Norm,
    ranks: Sequence[int],
    seed: int,
) -> Attacked:
    images: dict[float, Tensor] = {}

    def keep(ball: Ball, worst: Tensor) -> None:
        images[ball.eps] = worst

    balls = [BALLS[norm](eps) for eps in sorted(suite.eps)]
    attacked = partial(attack, search, chunk, balls=balls, seed=seed, chunk_size=len(chunk), report=_quiet)
    found = attacked(suite.runs(search), alone=suite.alone, keep=keep)
    tables = [_with_ranks(found[found["attack"] == "none"], search, search.images(chunk), chunk, ranks)]
    others = attacked(extra.runs(search), alone=True) if extra else None
    for ball in balls:
        rows = found[(found["eps"] == ball.eps) & (found["attack"] != "none")]
        worst = rows["attack"] == "worst"
        tables += [rows[~worst], _with_ranks(rows[worst], search, images[ball.eps], chunk, ranks)]
        if others is not None:
            tables.append(others[(others["eps"] == ball.eps) & (others["attack"] == MAP)])
    columns = [f"r{k}" for k in ranks]
    filled = [table.reindex(columns=[*table.columns.drop(columns, errors="ignore"), *columns]) for table in tables]
    outcomes = pd.concat([table.astype(dict.fromkeys(columns, float)) for table in filled], ignore_index=True)
    return Attacked(outcomes, images[max(suite.eps)].cpu().numpy())


@torch.no_grad()
def _with_ranks(
    rows: pd.DataFrame, search: SimilaritySearch, images: Tensor, chunk: np.ndarray, ranks: Sequence[int]
) -> pd.DataFrame:
    embeddings, queries = search.model(images), search.queries(chunk)
    hits = {f"r{k}": recall_at(embeddings, queries, search.gallery, k).cpu().numpy().astype(float) for k in ranks}
    return rows.assign(**hits)


def _quiet(line: str) -> None:
    """The engine's lines, one per chunk and radius, are replaced by those of :func:`run`."""


def _left(done: pd.DataFrame) -> str:
    left = done[done["attack"] == "worst"].groupby(["norm", "eps"])["r1"].mean()
    return ", R@1 left: " + ", ".join(f"{value:.3f} at {radius(eps, norm)}" for (norm, eps), value in left.items())
