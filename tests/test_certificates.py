"""Attacks on queries that a control's certificate calls safe: ten thousand tries on Glyphs, and those of results/."""

import numpy as np
import pytest
import torch

from dml.attacks.balls import Linf
from dml.attacks.objectives.margin import margin_objective
from dml.attacks.optimisers.apgd import apgd
from dml.common.files import ROOT
from dml.data.base import Split
from dml.data.sources.glyphs import read_glyphs
from dml.evaluation.controls import PooledPixels
from dml.evaluation.linear_metric import RobustLinear
from dml.pipeline import paths
from dml.reporting import records
from dml.reporting.spelling import CONTROL
from dml.retrieval.index import Search

BROKEN = "certified queries that the attack broke"  # a gate
TRIES = 10_000
AT_ONCE = 1000  # images


@pytest.fixture(scope="module")
def glyphs() -> Split:
    """40 test classes, 8 images of each, at 32 pixels."""
    source = read_glyphs(ROOT / "data" / "glyphs" / "glyphs.json", images_per_class=8, size=32, seed=0)
    rows = np.flatnonzero(source.labels >= len(source.class_names) - 40)
    drawn = {row: np.asarray(task(32)) for row, task in source.tasks(rows)}
    labels = source.labels[rows] - source.labels[rows].min()
    return Split(np.stack([drawn[row] for row in rows]), labels, source.class_names[-40:])


def stretched_metric(side: int) -> RobustLinear:
    """A matrix far from the identity, of spectral norm 1."""
    size = 3 * side**2
    matrix = torch.eye(size) + 0.5 * torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    return RobustLinear(side, matrix / torch.linalg.matrix_norm(matrix, 2))


@pytest.mark.parametrize("eps", [0.01, 8 / 255])
@pytest.mark.parametrize("model", [PooledPixels(8), PooledPixels(16), stretched_metric(8)], ids=["8", "16", "metric"])
def test_ten_thousand_tries_break_no_certified_query(glyphs: Split, model: PooledPixels, eps: float) -> None:
    """Each try is Auto-PGD on the exact margin from a random start; most start at the queries nearest to breaking."""
    search, generator = Search.over(model, glyphs), torch.Generator().manual_seed(0)
    every = np.arange(len(search))
    safe = every[model.certify(search, every, "linf", eps).numpy()]
    assert 5 <= len(safe) < len(every), "some queries are certified, and not all"
    lead = search.margin(search.images(safe), search.queries(safe))
    order = safe[lead.argsort(descending=True).numpy()]
    tries = np.concatenate([order, order[: max(1, len(order) // 4)].repeat(TRIES)])[:TRIES]
    nearest = -np.inf
    for first in range(0, TRIES, AT_ONCE):
        rows = tries[first : first + AT_ONCE]
        images, queries = search.images(rows), search.queries(rows)
        found = apgd(images, margin_objective(model, queries, search.gallery), Linf(eps), steps=4, generator=generator)
        assert (found - images).abs().max() <= eps + 1e-6
        nearest = max(nearest, float(search.margin(found, queries).max()))
    assert nearest < 0
    unsafe = np.setdiff1d(every, safe)
    images, queries = search.images(unsafe), search.queries(unsafe)
    found = apgd(images, margin_objective(model, queries, search.gallery), Linf(eps), steps=4, generator=generator)
    assert (search.margin(found, queries) >= 0).any(), "the same attack breaks others"


def test_no_certified_query_of_the_results_was_broken() -> None:
    """Each case met all attacks of its suite: photographs and Glyphs, boxes of pixels and the fitted metric."""
    held = [record for record in records.read(ROOT / paths.RECORDS) if record["loss"] == CONTROL]
    asked = [(record, gate) for record in held for gate in record["gates"] if gate["gate"] == BROKEN]
    assert all(gate["measured"] == 0 for _, gate in asked)
    cases = 0
    for record, gate in asked:
        (row,) = (row for row in record["rows"] if (row["attack"], row["eps"]) == ("certified", gate["eps"]))
        cases += round(row["r1"] * row["queries"])
    assert {record["dataset"] for record, _ in asked} >= {"flowers", "grocery", "cars196_half", "gtsrb", "glyphs"}
    assert cases >= 5_000
