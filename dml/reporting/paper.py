"""results/claims.md: each claim of the paper (arXiv 2102.07265), the measurement that tests it here, and a verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.reporting.claims import FACTOR
from dml.reporting.paired import in_r1, same_queries
from dml.reporting.records import Record, eps_key
from dml.reporting.sections import marked
from dml.reporting.spelling import CONTROL, MISSING, chance_text, factor_text, number, spell, table
from dml.reporting.tables import best_control, comparison

SHARED = "joint"  # one perturbation per image, as a classifier's training has it
REPORTED = ("cub200", "cars196", "sop")  # the datasets of the paper's own figures
Rows = list[list[str]]


def claims_page(by_dataset: Mapping[str, Sequence[Record]], figures: Figures) -> str:
    """Return results/claims.md.

    Args:
        by_dataset: dataset -> current records of the one suite that its headline shows.
        figures: names the baseline, the paper's defence and its peer, and gives the radii.
    """
    found = [
        (dataset, eps, comparison(records, eps, figures))
        for dataset, records in by_dataset.items()
        for eps in (figures.paper_eps, figures.eps)
    ]
    found = [item for item in found if not item[2].empty and item[2]["claims"].any()]
    base, paper, peer = (spell(name) for name in (figures.baseline, figures.paper, figures.peer))
    missing = ", ".join(name for name in REPORTED if name not in by_dataset)
    lines = [
        "# The paper's claims",
        "",
        "What [Exploring Adversarial Robustness of Deep Metric Learning](https://arxiv.org/abs/2102.07265) claims, and "
        "what was measured here. R@1 counts the worst of all attacks for each query, with its 95% interval. "
        "[All results](README.md)",
        "",
        "## 1. Undefended models fail under attack",
        "",
        f"Holds where {base} training loses more than half of its natural R@1.",
        *_table(["natural R@1", "adversarial R@1", "verdict"], _fails(found, figures.baseline)),
        "",
        "## 2. What is perturbed, and for whom, matters",
        "",
        f"A metric loss depends on the whole tuple. `{SHARED}` trains as one would a classifier: one perturbation per "
        f"image, shared by all tuples. Holds where {paper} training, which perturbs one element per tuple, beats it on "
        "the same queries (McNemar's exact test). Chapter 6 takes this apart.",
        *_table([paper, SHARED, "p", "verdict"], _paired(by_dataset, figures, figures.paper, SHARED)),
        "",
        f"## 3. {paper.capitalize()} training keeps 5 to 76 times the adversarial R@1",
        "",
        f"Holds where the 95% interval of the factor lies above {FACTOR}. The best control stands beside it: "
        "a factor over a model that loses everything says little by itself.",
        *_table([base, paper, "factor", "best control", "verdict"], _factors(found, figures)),
        "",
        f"## 4. {paper.capitalize()} training beats {peer} training",
        "",
        "On the same queries, by McNemar's exact test. The peer is the training of VisualPhishNet.",
        *_table([paper, peer, "p", "verdict"], _paired(by_dataset, figures, figures.paper, figures.peer)),
        "",
        "## Not tested here",
        "",
        f"The figures of the paper itself, on {missing}: these need the official archives and a GPU."
        if missing
        else "Nothing.",
    ]
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Rows) -> list[str]:
    if not rows:
        return ["", "Not measured with the present settings and code."]
    return table(["dataset", "loss", "eps", *header], rows)


Found = list[tuple[str, float, pd.DataFrame]]


def _models(found: Found, defense: str) -> list[tuple[list[str], Any, pd.DataFrame]]:
    """The rows of one defence: its first cells, the row, and the comparison that it stands in."""
    return [
        ([dataset, spell(row.loss), radius_text(eps)], row, compared)
        for dataset, eps, compared in found
        for row in compared[compared["defense"].eq(defense) & compared["loss"].ne(CONTROL)].itertuples()
    ]


def _fails(found: Found, baseline: str) -> Rows:
    rows = []
    for cells, row, _ in _models(found, baseline):
        half = row.natural / 2
        verdict = "holds" if row.r1_high < half else "fails" if row.r1_low >= half else "not shown"
        rows.append([*cells, number(row.natural), _r1(row), _judged(verdict, row.gates)])
    return rows


def _factors(found: Found, figures: Figures) -> Rows:
    rows = []
    for cells, row, compared in _models(found, figures.paper):
        base = compared[compared["loss"].eq(row.loss) & compared["defense"].eq(figures.baseline)]
        if base.empty:
            continue
        control = best_control(compared)
        beside = MISSING if control is None else f"{control['r1']:.3f} ({spell(control['defense'])})"
        verdict = "holds" if row.factor_low >= FACTOR else "fails" if row.factor_high < FACTOR else "not shown"
        factor = factor_text(row.factor, row.factor_low, row.factor_high)
        rows.append(
            [*cells, _r1(base.iloc[0]), _r1(row), factor, beside, _judged(verdict, row.gates, base.iloc[0].gates)]
        )
    return rows


def _paired(by_dataset: Mapping[str, Sequence[Record]], figures: Figures, first: str, second: str) -> Rows:
    rows = []
    for dataset, records in by_dataset.items():
        for loss in sorted({record["loss"] for record in records} - {CONTROL}):
            for eps in (figures.paper_eps, figures.eps):
                claimed = [record for record in records if record["claims"]]
                pairs = same_queries(claimed, (loss, first), (loss, second), eps_key(eps))
                found = in_r1(pairs, eps_key(eps))
                if found is None:
                    continue
                compared = comparison(records, eps, figures).set_index(["loss", "defense"])
                sides = [compared.loc[(loss, name)] for name in (first, second)]
                verdict = _judged(found.verdict, *(side["gates"] for side in sides))
                shown = chance_text(found.chance)
                rows.append([dataset, spell(loss), radius_text(eps), *map(_r1, sides), shown, verdict])
    return rows


def _r1(row: Any) -> str:
    return marked(row.r1, row.r1_low, row.r1_high, row.gates)


def _judged(verdict: str, *gates: str) -> str:
    return f"**{verdict}**" if set(gates) == {"hold"} else "not judged"
