"""Per-query outcomes as tables: their summary, which queries survive, and the scores without an attack."""

import numpy as np
import pandas as pd

from dml.evaluation.statistics import wilson
from dml.retrieval.index import Search
from dml.retrieval.metrics import Outcome, recall_at


def rows_of(queries: np.ndarray, attack: str, norm: str, eps: float, outcome: Outcome) -> pd.DataFrame:
    """Return the outcomes of some queries as rows of a table.

    Args:
        queries: (B,) their numbers.
        attack: its name, ``none`` for natural images.
        norm: of the ball.
        eps: radius.
        outcome: each value (B,).

    Returns:
        ``query, attack, norm, eps, r1, r_precision, map_r``; ``r1`` is 0 or 1.
    """
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


def summarise(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Return mean outcomes, one row per attack and radius, and for R@1 its 95% Wilson interval.

    Returns:
        ``attack, norm, eps, queries, r1, r1_low, r1_high, map_r``.
    """
    rows = []
    for (norm, eps, name), group in outcomes.groupby(["norm", "eps", "attack"], sort=True):
        low, high = wilson(int(group["r1"].sum()), len(group))
        mean = group[["r1", "map_r"]].mean()
        rows.append((name, norm, eps, len(group), mean["r1"], low, high, mean["map_r"]))
    return pd.DataFrame(rows, columns=["attack", "norm", "eps", "queries", "r1", "r1_low", "r1_high", "map_r"])


def survival(outcomes: pd.DataFrame, attack: str = "worst") -> dict[str, str]:
    """Return, for each radius, one character per query in the suite's order: 1 if it survives, 0 if it breaks."""
    rows = outcomes[outcomes["attack"] == attack]
    return {f"{eps:.6f}": "".join(map(str, group["r1"])) for eps, group in rows.groupby("eps")}


def map_r_left(outcomes: pd.DataFrame, attack: str) -> dict[str, str]:
    """Return, for each radius, the MAP@R that one attack leaves of each query, in the suite's order.

    Models are compared by query with it. Four decimals each; empty if the suite has no such attack.
    """
    rows = outcomes[outcomes["attack"] == attack]
    return {f"{eps:.6f}": " ".join(f"{x:.4f}" for x in group["map_r"]) for eps, group in rows.groupby("eps")}


def natural_scores(search: Search) -> pd.Series:
    """Return natural R@1, R@2, R@4, R@8, R-precision and MAP@R over all queries of a search."""
    outcome = search.natural()
    scores = {"queries": len(search), "r1": float(outcome.r1.double().mean())}
    queries = search.queries(np.arange(len(search)))
    for k in (2, 4, 8):
        scores[f"r{k}"] = float(recall_at(search.query_embeddings, queries, search.gallery, k).double().mean())
    scores |= {name: float(getattr(outcome, name).double().mean()) for name in ("r_precision", "map_r")}
    return pd.Series(scores, dtype=object, name="natural")
