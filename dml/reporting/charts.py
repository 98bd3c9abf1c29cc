"""Charts of records: one function per figure, drawn from the tables that it is given."""

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dml.attacks.balls import radius_text
from dml.reporting.spelling import CONTROL, MARK, model_text, spell
from dml.reporting.style import OTHER, WIDTH, Look, Palette, inside, key_mark, legend_above, panels

CONTROLS = "controls"
LABELLED = 22  # bars beside each other, at most, that leave room for their values


Tables = Mapping[float, pd.DataFrame]
"""Radius -> :func:`dml.reporting.tables.comparison`."""


def headline(tables: Tables, palette: Palette) -> Figure:
    """Bars of R@1, natural and under the worst attack, one panel per radius, with 95% intervals.

    Natural R@1 is over the whole test half, as in every table. † marks a model with a gate that does not hold.

    Args:
        tables: of one dataset and suite.
        palette: of the dataset.
    """
    scores = _with_natural(tables)
    shown = {(loss, name) for rows in scores.values() for loss, name in zip(rows["loss"], rows["defense"], strict=True)}
    groups = [*palette.losses, *([CONTROL] if palette.controls else [])]
    places = _bar_places(groups, palette, shown)
    figure, axes = panels(len(scores), columns=1, height=2.0)
    figure.set_size_inches(WIDTH, 2.0 * len(scores) + 0.4)
    top = min(1.0, max(rows["r1_high"].max() for rows in scores.values()))
    for panel, (eps, rows) in zip(axes, scores.items(), strict=True):
        for row in rows.itertuples():
            _bar(panel, places[row.loss, row.defense], row, palette.look(row.loss, row.defense), len(places), top)
        panel.set(title=f"attacked, eps {radius_text(eps)}" if eps else "natural", ylabel="R@1", ylim=(0, 1.25 * top))
        if top > 0.75:
            panel.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
        panel.grid(axis="x", visible=False)
    middle = [np.mean([at for (loss, _), at in places.items() if loss == group]) for group in groups]
    axes[-1].set_xticks(middle, [CONTROLS if group == CONTROL else spell(group) for group in groups])
    looks = [palette.look(*model) for model in palette.models]
    bars = [Patch(facecolor=look.color, hatch=look.hatch, edgecolor="white", linewidth=0) for look in looks]
    legend_above(figure, bars, [look.label for look in looks])
    return figure


def ranked(tables: Tables, palette: Palette, named: Collection[str]) -> Figure:
    """One row per model, best first: natural R@1 and what the worst attack leaves at each radius.

    Natural R@1 is over the whole test half, as in every table. † marks a model with a gate that does not hold.

    Args:
        tables: of one dataset and suite; the models are ranked by the last.
        palette: of the dataset.
        named: defences with a separate colour; controls are grey, all others of one colour.
    """
    parts = _with_natural(tables)
    radii = list(parts)
    order = parts[radii[-1]].sort_values("r1")[["loss", "defense", "gates"]].itertuples(index=False)
    models = [(row.loss, row.defense, row.gates) for row in order]
    marks = ("|", "D", "o") if len(radii) > 2 else ("|", "o")
    figure, panel = plt.subplots(figsize=(WIDTH, 0.27 * len(models) + 1.2))
    for height, (loss, defense, _) in enumerate(models):
        look = palette.look(loss, defense)
        look = look if loss == CONTROL or defense in named else look._replace(color=OTHER)
        for mark, (eps, part) in zip(marks, parts.items(), strict=True):
            row = part[part["loss"].eq(loss) & part["defense"].eq(defense)].iloc[0]
            error = [[row["r1"] - row["r1_low"]], [row["r1_high"] - row["r1"]]]
            style = {"color": look.color, "elinewidth": 2 if eps == radii[-1] else 0.8, "markersize": 7 if eps else 11}
            style["zorder"] = 2 if eps else 3  # the natural score shows beside one that hardly falls
            face = look.color if eps == radii[-1] else "white"
            panel.errorbar(row["r1"], height, xerr=error, fmt=mark, markerfacecolor=face, markeredgewidth=1.5, **style)
    names = [f"{model_text(loss, name)}{MARK if gates == 'fail' else ''}" for loss, name, gates in models]
    panel.set_yticks(range(len(models)), names, fontsize=9)
    panel.set(xlabel="R@1", xlim=(-0.02, 1.02), ylim=(-0.7, len(models) - 0.3))
    keys = [
        Line2D([], [], color="black", marker=mark, linestyle="", markerfacecolor=face, markeredgewidth=1.5)
        for mark, face in zip(marks, (*["white"] * (len(marks) - 1), "black"), strict=True)
    ]
    labels = ["natural" if eps == 0 else f"attacked, eps {radius_text(eps)}" for eps in radii]
    legend_above(figure, keys, labels)
    return figure


def _with_natural(tables: Tables) -> Tables:
    """The tables, and before them natural R@1 with its interval as if it were that of radius 0."""
    first = next(iter(tables.values()))
    ends = {f"r1{end}": first[f"natural{end}"] for end in ("", "_low", "_high")}
    return {0.0: first.assign(**ends), **tables}


def _bar_places(
    groups: Sequence[str], palette: Palette, shown: Collection[tuple[str, str]]
) -> dict[tuple[str, str], float]:
    """Where the bar of each model that is shown is: side by side in groups, a gap of one bar between groups."""
    places, at = {}, 0.0
    for group in groups:
        for name in palette.controls if group == CONTROL else palette.defenses:
            if (group, name) in shown:
                places[group, name] = at
                at += 1
        at += 1
    return places


def _bar(axes: Axes, at: float, row: tuple, look: Look, count: int, top: float) -> None:
    """One bar with its interval and, where there is room, its value; ``top`` is that of all bars."""
    axes.bar(at, row.r1, 0.92, color=look.color, hatch=look.hatch, edgecolor="white", linewidth=0)
    error = [[row.r1 - row.r1_low], [row.r1_high - row.r1]]
    axes.errorbar(at, row.r1, yerr=error, fmt="none", ecolor="black", elinewidth=1, capsize=3)
    digits = 3 if 0 < row.r1 < 0.01 else 2  # a few queries of thousands are not none
    value = f"{row.r1:.{digits}f}" if count <= LABELLED else ""
    text = f"{MARK}\n{value}" if row.gates == "fail" else value
    size = 9 if count <= 16 else 8
    axes.text(at, row.r1_high + 0.02 * top, text, ha="center", va="bottom", fontsize=size, linespacing=0.9)


def accuracy_by_eps(found: pd.DataFrame, palette: Palette, *, mark: Sequence[float] = ()) -> Figure:
    """R@1 against the radius, one panel per loss, one line per defence, with 95% intervals over queries.

    Args:
        found: pooled rows of one dataset and suite; the natural outcome is the point at radius 0.
        palette: of the dataset. Untrained controls are dashed grey lines in every panel.
        mark: radii to point out by vertical lines.
    """
    found = found[found["norm"].eq("linf") & found["attack"].isin(["none", "worst"])]
    groups = sorted(set(found["loss"]) - {CONTROL}) or [CONTROL]
    figure, axes = panels(len(groups))
    largest = found["eps"].max() * 255
    for panel, group in zip(axes, groups, strict=True):
        for eps in mark:
            panel.axvline(eps * 255, color="grey", linestyle=":", linewidth=1)
        for (loss, defense), points in found[found["loss"].isin([group, CONTROL])].groupby(["loss", "defense"]):
            _curve(panel, points.sort_values("eps"), palette.look(loss, defense), 255, band=loss != CONTROL)
        panel.set_xscale("symlog", linthresh=2)
        ticks = [tick for tick in (0, 1, 2, 4, 8, 16, 32, 64, 128) if tick <= max(largest, 1)]
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.set(title=_title(group), xlim=(-0.15, largest * 1.08), ylim=(-0.02, 1.02))
    _outer_labels(axes, "eps of the l-inf ball (1/255)", "R@1")
    models = [model for model in palette.models if model[1] in set(found["defense"])]
    looks = [palette.look(*model) for model in models]
    keys = [Line2D([], [], color=look.color, marker=look.marker, linestyle=look.line) for look in looks]
    legend_above(figure, keys, [look.label for look in looks])
    return figure


def _curve(axes: Axes, points: pd.DataFrame, look: Look, unit: float, *, band: bool) -> None:
    """A line through R@1 by radius times ``unit``, with its interval."""
    x = points["eps"] * unit
    face = inside("fail" if points["gates"].eq("fail").any() else "hold", look)
    style = {"color": look.color, "marker": look.marker, "linestyle": look.line, "markersize": 6}
    axes.plot(x, points["r1"], markerfacecolor=face, **style)
    if band:
        axes.fill_between(x, points["r1_low"], points["r1_high"], color=look.color, alpha=0.18, linewidth=0)


def attacks_compared(found: pd.DataFrame, palette: Palette) -> Figure:
    """R@1 after each attack by itself with 95% intervals, weak attacks on top, one panel per loss.

    Args:
        found: see :func:`dml.reporting.kinds.alone_table`.
        palette: of the dataset.
    """
    names = list(dict.fromkeys(found["attack"]))
    groups = sorted(set(found["loss"]), key=lambda loss: (loss == CONTROL, loss))
    figure, axes = panels(len(groups), columns=len(groups) if len(groups) <= 4 else 3, height=0.34 * len(names) + 1.1)
    for panel, group in zip(axes, groups, strict=True):
        models = [model for model in palette.models if (model[0] == CONTROL) == (group == CONTROL)]
        step = 0.7 / max(1, len(models))
        for place, (_, defense) in enumerate(models):
            rows = found[found["loss"].eq(group) & found["defense"].eq(defense)]
            if rows.empty:
                continue
            look = palette.look(group, defense)
            y = -np.array([names.index(name) for name in rows["attack"]]) - (place - (len(models) - 1) / 2) * step
            error = [rows["r1"] - rows["r1_low"], rows["r1_high"] - rows["r1"]]
            face = inside("fail" if rows["gates"].eq("fail").any() else "hold", look)
            style = {"color": look.color, "elinewidth": 1, "markersize": 5, "markerfacecolor": face}
            panel.errorbar(rows["r1"], y, xerr=error, fmt=look.marker, **style)
        labels = [{"none": "none (natural)", "worst": "all of these"}.get(name, spell(name)) for name in names]
        panel.set_yticks([-place for place in range(len(names))], labels)
        panel.set(title=_title(group), xlim=(-0.05, 1.05), ylim=(0.6 - len(names), 0.6))
        panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        panel.grid(axis="y", visible=False)
        for place in range(1, len(names)):
            panel.axhline(0.5 - place, color="lightgrey", linewidth=0.6)
    _outer_labels(axes, "R@1", "")
    looks = [palette.look(*model) for model in palette.models if model[1] in set(found["defense"])]
    keys = [key_mark(look.color, look.marker) for look in looks]
    legend_above(figure, keys, [look.label for look in looks])
    return figure


def certified_curves(found: pd.DataFrame, palette: Palette) -> Figure:
    """R@1 against the l2 radius, certified and under attack, one panel per loss, one colour per defence.

    Args:
        found: pooled rows of one dataset and suite.
        palette: of the dataset.
    """
    kinds = {"certified": "-", "smoothed": "--", "base": ":"}
    found = found[found["norm"].eq("l2") & found["attack"].isin(kinds)]
    groups = sorted(set(found["loss"]), key=lambda loss: (loss == CONTROL, loss))
    figure, axes = panels(len(groups))
    for panel, group in zip(axes, groups, strict=True):
        for (defense, attack), points in found[found["loss"].eq(group)].groupby(["defense", "attack"]):
            look = palette.look(group, defense)._replace(line=kinds[attack])
            _curve(panel, points.sort_values("eps"), look, 1, band=attack == "certified")
        panel.set(title=_title(group), ylim=(-0.02, 1.02))
    _outer_labels(axes, "radius of the l2 ball (pixel units)", "R@1")
    looks = [palette.look(*model) for model in palette.models if model[1] in set(found["defense"])]
    keys = [key_mark(look.color, look.marker) for look in looks]
    keys += [Line2D([], [], color="black", linestyle=line) for line in kinds.values()]
    names = [*(look.label for look in looks), "certified", "smoothed search, attacked", "plain search, attacked"]
    legend_above(figure, keys, names, columns=3)
    return figure


def _title(loss: str) -> str:
    return CONTROLS if loss == CONTROL else f"{spell(loss)} loss"


def _outer_labels(axes: Sequence[Axes], x: str, y: str) -> None:
    """Label the x axis of every panel and the y axis of the first of each row."""
    for panel in axes:
        place = panel.get_subplotspec()
        panel.set_xlabel(x)
        if place.is_first_col():
            panel.set_ylabel(y)
