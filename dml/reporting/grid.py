"""Training radius against test radius: what each of a family of models keeps at every radius of an attack."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dml.attacks.balls import radius_text
from dml.config.run import Figures
from dml.reporting.records import Record
from dml.reporting.spelling import count, order, spell
from dml.reporting.style import COLORS, WIDTH
from dml.reporting.tables import QUERIES, pool
from dml.reporting.variants import RADIUS, leaves, trained

RADII = 4  # that a suite must have attacked
LIGHT = 0.55  # R@1 above which a cell is so light that its value is black
TRAINED = 3  # training radii that make a family
COLUMNS = 2  # panels side by side


@dataclass(frozen=True)
class Family:
    """Models of one loss under one suite whose settings differ in the training radius alone.

    Attributes:
        name: the shortest of their defences' names.
        loss, suite: of all of them.
        members: training radius, ascending -> a record of each seed, the same seeds for all. The undefended baseline
            has radius 0.
    """

    name: str
    loss: str
    suite: str
    members: dict[float, list[Record]]

    def table(self) -> pd.DataFrame:
        """Return R@1, the mean over seeds: one row per training radius, one column per test radius, natural as 0."""
        means = {eps: pd.DataFrame([_left(record) for record in own]).mean() for eps, own in self.members.items()}
        return pd.DataFrame(means).T.sort_index(axis=1)

    def natural(self) -> pd.Series:
        """Return R@1 on natural images over the whole test half by training radius, the mean over seeds."""
        means = {eps: np.mean([record["natural"]["r1"] for record in own]) for eps, own in self.members.items()}
        return pd.Series(means)


def _left(record: Record) -> dict[float, float]:
    """R@1 of the attacked queries by test radius, natural as 0."""
    return {
        row["eps"]: row["r1"] for row in record["rows"] if row["norm"] == "linf" and row["attack"] in ("none", "worst")
    }


def _fewest(record: Record) -> int:
    """Queries of the row with the fewest of them."""
    return min(row["queries"] for row in record["rows"])


def families(records: Sequence[Record], figures: Figures) -> list[Family]:
    """Return the families of at least three training radii, attacked at four test radii or more on ``QUERIES`` or more.

    Of several seeds those count that have all radii of the seed with the most.

    Args:
        records: of one dataset.
        figures: names the baseline, and gives the order.
    """
    found: dict[str, dict[int, dict[float, Record]]] = {}
    for record in sorted(trained(records), key=lambda record: (record["seed"], record["defense"])):
        own = leaves(record)
        if RADIUS in own and len(_left(record).keys() - {0.0}) >= RADII and _fewest(record) >= QUERIES:
            eps = own.pop(RADIUS)
            key = json.dumps([record["suite"], own], sort_keys=True)
            found.setdefault(key, {}).setdefault(record["seed"], {}).setdefault(eps, record)
    wide = [_family(seeds, records, figures) for seeds in found.values() if max(map(len, seeds.values())) >= TRAINED]
    places = order((family.name for family in wide), figures)
    return sorted(wide, key=lambda family: (family.suite, family.loss, places.index(family.name)))


def _family(seeds: dict[int, dict[float, Record]], records: Sequence[Record], figures: Figures) -> Family:
    """Records by seed and training radius, as a family with its baseline."""
    widest = max(seeds.values(), key=len)
    kept = {seed: own for seed, own in seeds.items() if own.keys() >= widest.keys()}
    members = {eps: [own[eps] for own in kept.values()] for eps in widest}
    names = {record["defense"] for own in members.values() for record in own}
    first = next(iter(widest.values()))
    alike = [
        record
        for record in records
        if all(record[key] == first[key] for key in ("loss", "suite"))
        and record["defense"] == figures.baseline
        and record["seed"] in kept
    ]
    if len(alike) == len(kept):
        members.setdefault(0.0, alike)
    name = min(names, key=lambda name: (len(name), name))
    return Family(name, first["loss"], first["suite"], dict(sorted(members.items())))


def variants(found: Sequence[Family]) -> set[tuple[str, str]]:
    """Return loss and defence of the members of families, without those that name a family and the baseline."""
    members = {
        (family.loss, record["defense"])
        for family in found
        for eps, own in family.members.items()
        for record in own
        if eps > 0
    }
    return members - {(family.loss, family.name) for family in found}


def best(table: pd.DataFrame) -> dict[float, list[float]]:
    """Return the training radii that keep the most R@1 at each test radius where any is kept; several if equal."""
    return {
        eps: table.index[np.isclose(table[eps], table[eps].max(), rtol=0, atol=1e-9)].tolist()
        for eps in table.columns
        if table[eps].max() > 0
    }


def grid(found: Sequence[Family]) -> Figure:
    """One heat map per family, rows by training radius and columns by test radius, the best of each column framed."""
    columns = min(COLUMNS, len(found))
    lines = -(-len(found) // columns)
    most = max(len(family.members) for family in found)
    width = WIDTH if columns > 1 else 0.62 * WIDTH
    size = (width, lines * (0.36 * most + 1.1))
    figure, places = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for unused in places.flat[len(found) :]:
        unused.set_visible(False)
    for panel, family in zip(places.flat, found, strict=False):
        _heat(panel, family.table())
        panel.set_title(f"{spell(family.name)}, {spell(family.loss)} loss")
        panel.set_xlabel("test eps (1/255)")
    for panel in places[:, 0]:
        panel.set_ylabel("training eps (1/255)")
    bar = figure.colorbar(places[0, 0].collections[0], ax=places, label="R@1 left", aspect=30, pad=0.02)
    bar.outline.set_visible(False)
    return figure


def _heat(panel: Axes, table: pd.DataFrame) -> None:
    """Cells with their values; the best of every column bold and in a frame."""
    ticks = {
        "xticklabels": [f"{eps * 255:.3g}" for eps in table.columns],
        "yticklabels": [f"{eps * 255:.3g}" for eps in table.index],
    }
    look: dict[str, Any] = {"fmt": ".2f", "annot_kws": {"fontsize": 9}, "linewidths": 0.5}
    sns.heatmap(table, ax=panel, vmin=0, vmax=1, cmap="cividis", annot=True, cbar=False, **look, **ticks)
    for text, value in zip(panel.texts, table.to_numpy().flat, strict=True):
        text.set_color("black" if value > LIGHT else "white")
    panel.tick_params(length=0)
    panel.set_yticklabels(panel.get_yticklabels(), rotation=0)
    for tested, radii in best(table).items():
        column = table.columns.get_loc(tested)
        for eps in radii:
            row = table.index.get_loc(eps)
            panel.texts[row * len(table.columns) + column].set_fontweight("bold")
            frame = {"fill": False, "edgecolor": COLORS[1], "linewidth": 2.5, "clip_on": False, "zorder": 3}
            panel.add_patch(Rectangle((column, row), 1, 1, **frame))


def caption(found: Sequence[Family], dataset: str) -> str:
    """Return the caption of :func:`grid`, with how far the interval of a cell reaches at most."""
    suites = " and ".join(sorted({family.suite for family in found}))
    cells = pd.concat([pool([record for own in family.members.values() for record in own]) for family in found])
    cells = cells[cells["norm"].eq("linf") & cells["attack"].isin(["none", "worst"])]
    half = ((cells["r1_high"] - cells["r1_low"]) / 2).max()
    seeds = int(cells["trainings"].max())
    mean = f", mean of {count(seeds, 'training')}" if seeds > 1 else ""
    return (
        f"R@1 on {dataset} by training radius and test radius, suite {suites}{mean}. Test eps 0 is natural, training "
        f"eps 0 undefended. Frames: the best training radius of each column, before rounding. 95% intervals reach "
        f"{half:.3f} to either side at most."
    )


def section(found: Sequence[Family]) -> list[str]:
    """Say for each family which training radius is best at each test radius, and what a larger one costs."""
    several = len({family.suite for family in found}) > 1
    lines = []
    for family in found:
        suite = f", suite `{family.suite}`" if several else ""
        name = f"**{spell(family.name)}, {spell(family.loss)} loss{suite}**"
        lines.append(f"- {name}: {_best_text(family.table())} {_cost_text(family.natural())}")
    return ["", *lines] if lines else []


def _best_text(table: pd.DataFrame) -> str:
    parts = []
    chosen = best(table)
    for (radii, natural), group in itertools.groupby(chosen, key=lambda eps: (chosen[eps], eps == 0)):
        tested = [radius_text(eps) for eps in group]
        where = "on natural images" if natural else f"at test eps {' to '.join(dict.fromkeys((tested[0], tested[-1])))}"
        parts.append(f"{' and '.join(map(_radius, radii))} {where}")
    return f"the training eps that keeps the most R@1 is {', '.join(parts)}."


def _cost_text(natural: pd.Series) -> str:
    """Natural R@1 at the smallest and the largest training radius, where it is highest, and the baseline's."""
    radii = [eps for eps in natural.index if eps > 0]
    ends = [f"{natural[eps]:.3f} at training eps {radius_text(eps)}" for eps in (radii[0], radii[-1])]
    top = natural[radii].idxmax()
    most = "" if top in (radii[0], radii[-1]) else f", highest at {radius_text(top)} with {natural[top]:.3f}"
    base = f"; undefended, it is {natural[0.0]:.3f}" if 0.0 in natural.index else ""
    return f"Natural R@1 over the whole test half is {ends[0]} and {ends[1]}{most}{base}."


def _radius(eps: float) -> str:
    return radius_text(eps) if eps else "0 (undefended)"
