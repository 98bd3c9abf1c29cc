"""What the claims of the paper are judged by: rows of models by dataset, loss and radius, and pairs of them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.reporting.claims import UNJUDGED, judged_by, owed, rests_on
from dml.reporting.paired import in_r1, same_queries, shares
from dml.reporting.records import Record, eps_key
from dml.reporting.sections import marked
from dml.reporting.spelling import CONTROL, MISSING, UNTESTED, chance_text, spell, table
from dml.reporting.tables import comparison
from dml.reporting.variants import as_the_papers

Asked = tuple[str, str, float]
"""Dataset, loss and radius that a claim is asked of."""


@dataclass(frozen=True)
class Evidence:
    """What was measured.

    Attributes:
        by_dataset: dataset -> current records of one suite.
        figures: names the baseline, the paper's defence and its peer, and gives the radii.
        compared: :func:`dml.reporting.tables.comparison` by dataset and radius.
        found: its rows with one loss, by defence; empty where no claim rests on them.
    """

    by_dataset: Mapping[str, Sequence[Record]]
    figures: Figures
    compared: Mapping[tuple[str, float], pd.DataFrame]
    found: Mapping[Asked, pd.DataFrame]

    def rows(self, asked: Asked, *defenses: str) -> list[Any]:
        """Return the row of each defence; nothing if one was not measured."""
        own = self.found[asked]
        return [own.loc[name] for name in defenses] if set(defenses) <= set(own.index) else []


Cells = Callable[[Asked, Evidence], list[str]]
"""What a row shows after dataset, loss and radius; nothing if it was not tested."""


def gathered(by_dataset: Mapping[str, Sequence[Record]], figures: Figures) -> Evidence:
    """Return what was measured.

    Args:
        by_dataset: dataset -> current records of one suite.
        figures: names the baseline and gives the radii.
    """
    by_dataset = {dataset: as_the_papers(records, figures) for dataset, records in by_dataset.items()}
    compared = {
        (dataset, eps): comparison(records, eps, figures)
        for dataset, records in by_dataset.items()
        for eps in dict.fromkeys((figures.paper_eps, figures.eps))
    }
    return Evidence(by_dataset, figures, compared, _by_loss(compared))


def _by_loss(compared: Mapping[tuple[str, float], pd.DataFrame]) -> dict[Asked, pd.DataFrame]:
    """What was measured of each dataset, loss and radius; no rows where no claim rests on it."""
    losses: dict[str, set[str]] = {}
    for (dataset, _), rows in compared.items():
        losses.setdefault(dataset, set()).update(set(rows["loss"]) - {CONTROL})
    found = {}
    for dataset, own in losses.items():
        for loss, (name, eps) in itertools.product(sorted(own), compared):
            rows = compared[name, eps]
            if name == dataset:
                chosen = rows["loss"].eq(loss) & rows["claims"].any()
                found[dataset, loss, eps] = rows[chosen].set_index("defense", drop=False)
    return found


def by_radius(header: Sequence[str], evidence: Evidence, cells: Cells) -> list[str]:
    """Return a table of one row per dataset, loss and radius; one for all radii of a loss that were not tested.

    Args:
        header: of the cells.
        evidence: what was measured.
        cells: what stands after dataset, loss and radius.
    """
    rows = []
    for (dataset, loss), group in itertools.groupby(evidence.found, key=lambda asked: asked[:2]):
        untested = []
        for asked in group:
            if measured := cells(asked, evidence):
                rows.append([dataset, spell(loss), radius_text(asked[2]), *measured])
            else:
                untested.append(radius_text(asked[2]))
        if untested:
            rows.append([dataset, spell(loss), ", ".join(untested), *[MISSING] * (len(header) - 1), UNTESTED])
    return table(["dataset", "loss", "eps", *header], rows)


def paired_table(evidence: Evidence, other: str) -> list[str]:
    """Return a table of whether the paper's defence beats another on the queries that both met."""
    paper = evidence.figures.paper
    header = [spell(paper), spell(other), "p", "verdict"]
    return by_radius(header, evidence, lambda asked, evidence: paired(asked, evidence, paper, other))


def paired(asked: Asked, evidence: Evidence, first: str, second: str) -> list[str]:
    """Return R@1 of two defences, the value of p and the verdict that the first is ahead; nothing if not tested."""
    dataset, loss, eps = asked
    sides, key = evidence.rows(asked, first, second), eps_key(eps)
    pairs = same_queries(evidence.by_dataset[dataset], (loss, first), (loss, second), key) if sides else []
    found = in_r1(pairs, key)
    if found is None:
        return []
    gates = rests_on(found.verdict, *(side.gates for side in sides))
    cells = [marked(*share, side.gates) for share, side in zip(shares(pairs, key), sides, strict=True)]
    verdict = owed(judged_by(found.verdict, *gates), evidence.by_dataset[dataset], (loss, first), key)
    return [*cells, chance_text(found.chance), told(verdict)]


def r1(row: Any) -> str:
    """Return R@1 of a row of a comparison with its interval."""
    return marked(row.r1, row.r1_low, row.r1_high, row.gates)


def told(verdict: str) -> str:
    """Return a verdict in bold, unless there is none."""
    return verdict if verdict == UNJUDGED else f"**{verdict}**"
