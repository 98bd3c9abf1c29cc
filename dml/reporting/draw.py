"""All figures of a dataset, drawn and saved in one call."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.data.base import Split
from dml.evaluation.examples import Examples, example_images, telling_examples
from dml.reporting import charts, grid, plots, scatter, style
from dml.reporting.claims import START
from dml.reporting.kinds import alone_table
from dml.reporting.records import Record
from dml.reporting.sections import queries_text
from dml.reporting.spelling import CONTROL, count, spell
from dml.reporting.tables import QUERIES, comparison, main_suite, of_suite, pool, ranked
from dml.reporting.variants import OWN, RADIUS, at_their_best, leaves, trained

SEARCHES = 2  # example queries per dataset

MARKED = "† marks a model with a gate that fails or an embedding that collapsed."

Drawn = tuple[str, str]
"""A figure's file, relative to results/, and its caption."""


def draw_records(records: Sequence[Record], dataset: str, figures: Figures, results: Path) -> list[Drawn]:
    """Draw and save every figure that the records of a dataset give, as PNG and SVG.

    Args:
        records: current ones, of any datasets.
        dataset: whose figures to draw.
        figures: radii, main suite, and the order of the defences.
        results: folder of results; figures go to ``figures/<dataset>/`` below it.
    """
    own = [record for record in records if record["dataset"] == dataset]
    palette = style.Palette({(record["loss"], record["defense"]) for record in own}, figures)
    style.theme()
    drawn = _headline(own, dataset, figures, palette) | _by_eps(own, dataset, figures, palette)
    drawn |= _alone(own, dataset, figures, palette) | _certified(own, dataset, palette)
    if found := grid.families(own, figures):
        drawn["grid"] = grid.grid(found), grid.caption(found, dataset)
    return [_keep(figure, results, dataset, name, caption) for name, (figure, caption) in drawn.items()]


def draw_examples(
    shown: Mapping[str, Examples], gallery: Split, dataset: str, figures: Figures, results: Path
) -> list[Drawn]:
    """Draw and save searches before and after an attack, and maps of embeddings, as PNG and SVG.

    Args:
        shown: defence -> examples, of models with the loss ``figures.loss`` attacked on the same queries.
        gallery: images and labels that are searched.
        dataset: that they belong to.
        figures: the order of the defences.
        results: folder of results.
    """
    if not shown:
        return []
    style.theme()
    first = shown.get(figures.baseline) or next(iter(shown.values()))
    drawn: dict[str, tuple[Figure, str]] = {}
    for number, place in enumerate(telling_examples(gallery, first, SEARCHES), start=1):
        for defense, examples in shown.items():
            radius = radius_text(examples.eps)
            title = f"{spell(defense)} training, {spell(figures.loss)} loss, eps {radius}"
            figure = plots.fooled_search(*example_images(gallery, examples, place), eps=examples.eps, title=title)
            caption = f"Query {number} before and after the attack, {spell(defense)} training, eps {radius}."
            drawn[f"search_{number}_{defense}"] = figure, caption
    classes = count(len(np.unique(first.labels)), "test class", "test classes")
    caption = (
        f"Embeddings of {classes} in the plane of their two largest principal components; arrows lead from natural "
        "queries to attacked ones."
    )
    drawn["embeddings"] = maps(shown, gallery), caption
    return [_keep(figure, results, dataset, name, caption) for name, (figure, caption) in drawn.items()]


def _keep(figure: Figure, results: Path, dataset: str, name: str, caption: str) -> Drawn:
    file = style.save(figure, results / "figures" / dataset, name, caption)
    return file.relative_to(results).as_posix(), caption


def _headline(
    records: Sequence[Record], dataset: str, figures: Figures, palette: style.Palette
) -> dict[str, tuple[Figure, str]]:
    """Bars and scatter of the main suite."""
    suite = main_suite(records, figures)
    if suite is None:
        return {}
    own = of_suite(records, suite)
    tables = {eps: comparison(own, eps, figures) for eps in sorted({figures.paper_eps, figures.eps})}
    tables = {eps: found for eps, found in tables.items() if not found.empty}
    if not tables:
        return {}
    queries = queries_text(next(iter(tables.values())))
    named = {figures.baseline, figures.paper, figures.peer, START, *OWN}
    best: list[tuple[str, str]] = []
    few = each = ""
    if scatter.crowded(palette):  # bars would be too thin to read, and their colours repeat
        best = at_their_best(ranked(tables[max(tables)]), own, named)
        bars = charts.ranked({eps: _only(found, best) for eps, found in tables.items()}, palette, named)
        colored = ", ".join(name for name in palette.defenses if name in named)
        each = f" Each class of defence is shown with its best settings and loss; in colour: {colored}."
        few = " Named: each class of defence at its best, the leading models, and those with a colour in the bars. "
        few += "Controls may lie outside."
    else:
        bars = charts.headline(tables, palette)
    few += " The natural axis is stretched towards 1." if scatter.stretched(tables[max(tables)]) else ""
    return {
        "headline": (
            bars,
            f"R@1 on {dataset}, natural over the whole test half and under the worst attack of suite {suite}, "
            f"{queries}, with 95% intervals.{each} {MARKED}",
        ),
        "scatter": (
            scatter.scatter(tables, palette, named, best),
            f"Natural against adversarial R@1 on {dataset}, suite {suite}, {queries}, with 95% intervals. Better is up "
            "and to the right; no trained model lies beyond the grey steps, the Pareto front. Hollow: a gate fails, or "
            f"the embedding collapsed.{few}",
        ),
    }


def _only(found: pd.DataFrame, models: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """The rows of some models and of all controls."""
    kept = [
        loss == CONTROL or (loss, name) in models for loss, name in zip(found["loss"], found["defense"], strict=True)
    ]
    return found[kept]


def _by_eps(
    records: Sequence[Record], dataset: str, figures: Figures, palette: style.Palette
) -> dict[str, tuple[Figure, str]]:
    """Curves of the suite with the most radii."""
    radii: dict[str, int] = {}
    for record in records:
        worst = [row for row in record["rows"] if row["attack"] == "worst" and row["norm"] == "linf"]
        if len(worst) >= grid.RADII and min(row["queries"] for row in worst) >= QUERIES:
            radii[record["suite"]] = max(len(worst), radii.get(record["suite"], 0))
    if not radii:
        return {}
    suite = max(sorted(radii), key=radii.__getitem__)
    own = of_suite(records, suite)
    in_grid = grid.variants(grid.families(own, figures))  # their curves would hide the others
    found = pool([record for record in own if (record["loss"], record["defense"]) not in in_grid])
    figure = charts.accuracy_by_eps(found, palette, mark=(figures.paper_eps, figures.eps))
    marked = " and ".join(radius_text(eps) for eps in sorted({figures.paper_eps, figures.eps}))
    caption = (
        f"R@1 on {dataset} as the radius grows, suite {suite}, {queries_text(found)}. Dotted vertical lines: eps "
        f"{marked}; bands: 95% intervals of trained models."
    ) + (" Other training radii: see the grid." if in_grid else "")
    return {"accuracy_by_eps": (figure, caption + _trained_at(own, found))}


def _trained_at(records: Sequence[Record], found: pd.DataFrame) -> str:
    """At which radii the models of a figure were trained, if these differ."""
    models = set(zip(found["loss"], found["defense"], strict=True))
    radii: dict[float, set[str]] = {}
    for record in trained(records):
        if (record["loss"], record["defense"]) in models and RADIUS in (own := leaves(record)):
            radii.setdefault(own[RADIUS], set()).add(spell(record["defense"]))
    parts = [f"{' and '.join(sorted(names))} at {radius_text(eps)}" for eps, names in sorted(radii.items())]
    return f" Trained: {', '.join(parts)}." if len(parts) > 1 else ""


def _alone(
    records: Sequence[Record], dataset: str, figures: Figures, palette: style.Palette
) -> dict[str, tuple[Figure, str]]:
    """Single attacks of the suite that ran the most of them by themselves."""
    tables = {}
    for suite in sorted({record["suite"] for record in records if record["alone"]}):
        found = alone_table(of_suite(records, suite), figures.eps)
        if not found.empty and found["queries"].min() >= QUERIES:
            tables[suite] = found
    if not tables:
        return {}
    suite = max(tables, key=lambda name: tables[name]["attack"].nunique())
    found = tables[suite]
    caption = (
        f"R@1 on {dataset} after one attack at a time, eps {radius_text(figures.eps)}, suite {suite}, "
        f"{queries_text(found)}, with 95% intervals. Weak attacks overstate robustness."
    )
    return {"attacks": (charts.attacks_compared(found, palette), caption)}


def _certified(records: Sequence[Record], dataset: str, palette: style.Palette) -> dict[str, tuple[Figure, str]]:
    """Certified curves of the suite with the most queries."""
    sizes = {
        record["suite"]: row["queries"]
        for record in records
        for row in record["rows"]
        if row["norm"] == "l2" and row["attack"] == "certified" and row["queries"] >= QUERIES
    }
    if not sizes:
        return {}
    suite = max(sorted(sizes), key=sizes.__getitem__)
    found = pool(of_suite(records, suite))
    caption = (
        f"R@1 on {dataset} against the l2 radius, suite {suite}, {queries_text(found)}: certified, and under attack "
        "with and without smoothing."
    )
    return {"certified": (charts.certified_curves(found, palette), caption)}


def maps(shown: Mapping[str, Examples], gallery: Split) -> Figure:
    """Embeddings of a few classes and where the attack moves queries, one panel per defence.

    Args:
        shown: defence -> examples.
        gallery: labels and class names of the items that are searched.
    """
    figure, axes = style.panels(len(shown), height=4.2, share=False)
    for panel, (defense, examples) in zip(axes, shown.items(), strict=True):
        labels = gallery.labels[examples.class_rows]
        plots.embedding_map(examples.class_embeddings, labels, examples.start, examples.end, gallery.class_names, panel)
        panel.set_title(f"{spell(defense)}, eps {radius_text(examples.eps)}")
    style.legend_above(figure, *axes[0].get_legend_handles_labels(), columns=3)
    return figure
