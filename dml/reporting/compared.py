"""results/compared.csv: what the pages show as a table; columns.md: what its columns hold, and those of metrics.csv."""

from collections.abc import Mapping, Sequence

import pandas as pd

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.reporting.records import Record
from dml.reporting.spelling import table
from dml.reporting.tables import comparison, main_records
from dml.reporting.variants import KIND, leaves, trained

SHARED = {
    "dataset": "recipe of `params.yaml`",
    "loss": "of the training; `none` for a control, a search without a trained network",
    "defense": "name in the recipe; the same name may stand for other settings on another dataset",
}
SUITE = {"suite": "what attacked; its settings are in `params.yaml` and on the dataset's page"}
METRICS = {
    **SHARED,
    "seed": "of the training and of the attack",
    **SUITE,
    "attack": (
        "`none`: natural images; `worst`: the worst that all attacks found for each query; `map`: an attack on MAP@R; "
        "`certified`: what is proven; otherwise the first attack, or, in a suite that runs them alone, each"
    ),
    "norm": "of the ball: `linf` or `l2`",
    "eps": "its radius, pixels of [0, 1], six digits: 8/255 is 0.031373",
    "queries": "attacked, the first of one random order; `with_groups` and `twins` count answers from its own group",
    "r1": "R@1 of these queries",
    "r1_low": "lower end of Wilson's 95% interval over queries",
    "r1_high": "upper end",
    "map_r": "MAP@R of the images that the attack left; only `map` looks for the lowest; empty for `certified`",
    "gates": "`hold`, `fail` or `not run`; collapse has its own column",
    "collapsed": "whether the embedding collapsed; the pages mark it as they mark a gate that fails",
}
COMPARED = {
    **SHARED,
    **SUITE,
    "kind": "the defence's class, a key of `DEFENSES`; for a control its name",
    "radius": "`8/255` or `0.01`, as the pages write it",
    "trainings": "seeds that are pooled",
    "queries": "attacked, those of all seeds counted together",
    "claims": "whether the suite has gates, so that claims rest on it",
    "gates": "`hold`, `fail` or `not run`: signs that an attack failed; a collapsed embedding counts as `fail`",
    "images": "of the test half, over which natural scores are taken",
    "natural": "natural R@1, the mean over seeds",
    "natural_low": "lower end of its 95% interval",
    "natural_high": "upper end",
    "map_r": "natural MAP@R",
    "r1": "R@1 after the worst of all attacks",
    "r1_low": "lower end of its 95% interval",
    "r1_high": "upper end",
    "least": "the lowest r1 of a training",
    "most": "the highest",
    "adversarial_map_r": "MAP@R that an attack on it leaves; empty for a suite without one",
    "factor": (
        "r1 relative to that of `{baseline}` with the same loss, on the seeds of both; empty for `{baseline}` and "
        "controls, `inf` where no query of `{baseline}` survived"
    ),
    "factor_low": "lower end of its 95% interval",
    "factor_high": "upper end",
}


def compared(by_dataset: Mapping[str, Sequence[Record]], figures: Figures) -> pd.DataFrame:
    """Return the rows of compared.csv: those of :func:`comparison` at both radii, under each dataset's main suite.

    Args:
        by_dataset: dataset -> its current records.
        figures: what results/ reports.
    """
    parts = []
    for dataset, own in main_records(by_dataset, figures).items():
        kinds = {record["defense"]: leaves(record)[KIND] for record in trained(own)}
        for eps in dict.fromkeys((figures.eps, figures.paper_eps)):
            found = comparison(own, eps, figures)
            kind = found["defense"].map(lambda name, kinds=kinds: kinds.get(name, name))
            parts.append(found.assign(dataset=dataset, suite=own[0]["suite"], radius=radius_text(eps), kind=kind))
    return pd.concat(parts, ignore_index=True)[list(COMPARED)] if parts else pd.DataFrame(columns=list(COMPARED))


def columns_page(figures: Figures) -> str:
    """Return the page."""
    shown = "[compared.csv](compared.csv) holds what the pages show: each model under its dataset's main suite."
    lines = ["# Columns", "", shown, *_described(COMPARED, figures), ""]
    lines += ["[metrics.csv](metrics.csv) holds every training under every suite."]
    return "\n".join([*lines, *_described(METRICS, figures)]) + "\n"


def _described(columns: dict[str, str], figures: Figures) -> list[str]:
    rows = [[f"`{name}`", meaning.format(baseline=figures.baseline)] for name, meaning in columns.items()]
    return table(["column", "holds"], rows)
