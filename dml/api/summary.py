"""From the outcome of each query to one row per model and radius, with intervals over queries."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dml.api.similarity import SimilaritySearch
from dml.evaluation.statistics import over_seeds, wilson
from dml.retrieval.gallery import Gallery, Matches, Queries, at_once, renormalised
from dml.retrieval.metrics import CHUNK, NEAR_TIE, per_query, tolerance

MODEL = "your model"  # in the column ``model``; controls have their names
TIES = tuple(NEAR_TIE * torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64))  # margins of exact ties


def summarise(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Return one row per model and radius; see :attr:`dml.api.result.Result.summary`."""
    return pd.DataFrame(
        [
            _row(str(model), float(eps), rows)
            for model, rows in outcomes.groupby("model", sort=False)
            for eps in sorted(rows.loc[rows["attack"] != "none", "eps"].unique())
        ]
    )


def tied(outcomes: pd.DataFrame) -> tuple[int, int, int]:
    """Return how many attacked queries of the model tie, are missed, and there are, before the attack.

    The nearest right item ties with a wrong one where embeddings are rounded or binary.
    """
    before = outcomes[(outcomes["model"] == MODEL) & (outcomes["attack"] == "none")]
    margins = before["margin"] if "margin" in before else before["r1"]  # of which none is a tie
    ties = np.any([np.isclose(margins, margin, rtol=1e-3, atol=0) for margin in TIES], axis=0)
    return int(ties.sum()), int((before["r1"] == 0).sum()), len(before)


def ranks_of(table: pd.DataFrame) -> list[str]:
    """Return the columns of a table that hold R@k, such as ``r2``, in order; not R@1."""
    found = [int(name[1:]) for name in table.columns if name[:1] == "r" and name[1:].isdigit()]
    return [f"r{k}" for k in sorted(found) if k > 1]


def natural_scores(search: SimilaritySearch, usable: np.ndarray, ranks: Sequence[int]) -> dict[str, float]:
    """Return how many queries have an answer, and their natural R@1, R@k and MAP@R, attacked or not.

    Args:
        search: of the model.
        usable: numbers of these queries.
        ranks: the k of each R@k.
    """
    rows = torch.from_numpy(usable).to(search.query_embeddings.device)
    embeddings, queries = search.query_embeddings[rows], search.queries(usable)
    found = per_query(embeddings, queries, search.gallery)
    ahead = _ahead(embeddings, queries, search.gallery)
    recall = {f"r{k}": float((ahead < k).double().mean()) for k in ranks}
    r1, map_r = float(found.r1.double().mean()), float(found.map_r.mean())
    return {"queries": len(usable), "r1": r1, **recall, "map_r": map_r}


@torch.no_grad()
def _ahead(embeddings: Tensor, queries: Queries, gallery: Gallery) -> Tensor:
    """(B,) number of wrong items as near as the nearest right one, or nearer.

    As exact as :func:`dml.retrieval.metrics.recall_at`, and once for every k.
    """
    lead = tolerance(embeddings, gallery)
    found = []
    for rows in torch.arange(len(embeddings), device=embeddings.device).split(at_once(gallery, CHUNK)):
        right, wrong, _ = Matches.of(queries.take(rows), gallery)
        similarity = renormalised(embeddings[rows]) @ gallery.exact.T
        nearest = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        found.append((~(similarity < nearest - lead) & wrong).sum(1))  # what is not a number is a miss
    return torch.cat(found)


def r1_left(rows: pd.DataFrame, eps: float) -> pd.Series:
    """Return R@1 of each query at a radius, by its number, after the worst attack: 1 or 0.

    Args:
        rows: outcomes of one model. Suites that are no list of attacks have no rows ``worst``.
        eps: the radius.
    """
    attacked = rows[np.isclose(rows["eps"], eps) & ~rows["attack"].isin(["none", "certified"])]
    worst = attacked[attacked["attack"] == "worst"]
    return (worst if len(worst) else attacked).groupby("query")["r1"].min()


def _row(model: str, eps: float, rows: pd.DataFrame) -> dict[str, Any]:
    none = pd.Series(dtype=float)  # of suites that do not look beyond the nearest item
    natural = rows[rows["attack"] == "none"]
    attacked = rows[(rows["eps"] == eps) & ~rows["attack"].isin(["none", "certified"])]
    worst = attacked[attacked["attack"] == "worst"]
    r1 = r1_left(rows, eps)
    shares = {"natural_r1": natural["r1"], "r1": r1}
    means = {"natural_map_r": natural["map_r"], "map_r": attacked.groupby("query")["map_r"].min()}
    columns = ranks_of(rows)
    ranks = {f"{name}{k}": of.get(k, none) for k in columns for name, of in (("natural_", natural), ("", worst))}
    found = {"model": model, "eps": eps, "queries": len(r1)}
    for name, values in (shares | means | ranks).items():
        low, high = _mean_interval(values) if name in means else _share_interval(values)
        found |= {name: values.mean(), f"{name}_low": low, f"{name}_high": high}
    return found


def _share_interval(values: pd.Series) -> tuple[float, float]:
    """Wilson's 95% interval of a share; of values that were not measured there is none."""
    known = values.notna().all() and len(values) > 0
    return wilson(int(values.sum()), len(values)) if known else (math.nan, math.nan)


def _mean_interval(values: pd.Series) -> tuple[float, float]:
    """The 95% t-interval of a mean of values in [0, 1]; queries are independent draws as trainings are.

    Equal values have no variance to build it from: then it is Wilson's, of as many zeros and ones.
    """
    if len(values) < 2:
        return 0.0, 1.0
    if values.nunique() == 1:
        return wilson(round(values.sum()), len(values))
    _, low, high = over_seeds(values.tolist())
    return max(low, 0.0), min(high, 1.0)
