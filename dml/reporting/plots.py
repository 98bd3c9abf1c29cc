"""Every figure of the notebooks and of results/: one function a figure, drawn on what it is given."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dml.attacks.balls import radius_text
from dml.common.files import atomic

# Okabe and Ito's colours, which readers with any colour vision can tell apart; one a defence, everywhere.
COLORS = {"standard": "#0072B2", "robust": "#D55E00", "single_step": "#009E73"}
SPARE_COLORS = ("#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = {"standard": "o", "robust": "s", "single_step": "^"}
SPARE_MARKERS = ("D", "v", "P", "X")


def theme() -> None:
    """Set the look of all figures; called once at the top of a notebook."""
    sns.set_theme(style="whitegrid", context="notebook")
    matplotlib.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "svg.hashsalt": "dml",  # same drawing, same bytes
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "legend.frameon": False,
        }
    )


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure as PNG and SVG; the same figure gives the same bytes."""
    for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        with atomic(folder / f"{name}.{ending}") as partial:
            figure.savefig(partial, format=ending, bbox_inches="tight", metadata=metadata)


def color(defense: str, others: Sequence[str] = ()) -> str:
    """The colour of a defence; one without its own takes a spare by its place among ``others``."""
    return COLORS.get(defense) or SPARE_COLORS[sorted(set(others) - set(COLORS)).index(defense) % len(SPARE_COLORS)]


def marker(defense: str, others: Sequence[str] = ()) -> str:
    """The marker of a defence, chosen as its colour is."""
    return MARKERS.get(defense) or SPARE_MARKERS[sorted(set(others) - set(MARKERS)).index(defense) % 4]


def spell(defense: str) -> str:
    """A defence's name as text."""
    return defense.replace("_", " ")


def image_grid(rows: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """One line of uint8 pictures a class, its name before it."""
    columns = max(len(row) for row in rows)
    figure, axes = plt.subplots(len(rows), columns, figsize=(0.72 * columns + 2.4, 0.75 * len(rows)), squeeze=False)
    for line, (row, title) in enumerate(zip(rows, titles, strict=True)):
        for column in range(columns):
            _bare(axes[line, column])
            if column < len(row):
                axes[line, column].imshow(row[column])
        axes[line, 0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
    figure.subplots_adjust(wspace=0.05, hspace=0.08)
    return figure


def class_counts(counts: pd.DataFrame) -> Figure:
    """Images a class in each split; ``counts`` has columns ``split`` and ``images``, a row a class."""
    figure, axes = plt.subplots(figsize=(6.4, 3.0))
    sns.stripplot(counts, x="images", y="split", hue="split", size=4, alpha=0.6, palette="colorblind", ax=axes)
    axes.set(xlabel="images in a class", ylabel="", xlim=(0, counts["images"].max() * 1.08))
    return figure


def training_curves(epochs: pd.DataFrame, chosen: int) -> Figure:
    """Loss, and validation R@1 natural and adversarial, by epoch; the epoch that was kept is marked."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    x = np.arange(1, len(epochs) + 1)
    left.plot(x, epochs["loss"], color="black", marker="o")
    left.set(xlabel="epoch", ylabel="mean loss of a tuple", title="Training loss", ylim=(0, None))
    right.plot(x, epochs["natural"], color=COLORS["standard"], marker="o", label="natural")
    right.plot(x, epochs["adversarial"], color=COLORS["robust"], marker="s", label="adversarial")
    right.set(xlabel="epoch", ylabel="R@1", title="Held-out training classes", ylim=(0, 1.02))
    for axes in (left, right):
        axes.axvline(chosen + 1, color="grey", linestyle=":", label="epoch kept" if axes is right else None)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    return figure


def fooled_search(
    query: np.ndarray,
    perturbed: np.ndarray,
    before: Sequence[tuple[np.ndarray, bool]],
    after: Sequence[tuple[np.ndarray, bool]],
    *,
    eps: float,
    title: str,
) -> Figure:
    """A query, its perturbation, and what is retrieved before and after; green frames are right, red ones wrong.

    Args:
        query, perturbed: (H, W, 3) in [0, 1].
        before, after: pictures retrieved, best first, each with whether its class is the query's.
        eps: radius of the perturbation, which is shown amplified so that eps spans the full range.
        title: above the figure.
    """
    columns = 2 + max(len(before), len(after))
    figure, axes = plt.subplots(2, columns, figsize=(1.25 * columns, 3.3))
    noise = np.clip((perturbed - query) / (2 * eps) + 0.5, 0, 1)
    for line, (picture, retrieved, word) in enumerate(((query, before, "query"), (perturbed, after, "attacked"))):
        axes[line, 0].imshow(picture)
        axes[line, 0].set_title(word, fontsize=9, fontweight="normal")
        for place, (item, right) in enumerate(retrieved):
            cell = axes[line, 2 + place]
            cell.imshow(item)
            if line == 0:
                cell.set_title(f"rank {place + 1}", fontsize=9, fontweight="normal")
            for side in cell.spines.values():
                side.set(visible=True, color="#009E73" if right else "#D55E00", linewidth=4)
            cell.text(
                0.5, -0.06, "right" if right else "wrong", transform=cell.transAxes, ha="center", va="top", fontsize=8
            )
    axes[1, 1].imshow(noise)
    axes[1, 1].set_title(f"change ×{0.5 / eps:.0f}", fontsize=9, fontweight="normal")
    for cell in axes.flat:
        _bare(cell, keep_frame=True)
    for cell in axes[:, :2].flat:
        cell.set_frame_on(False)
    axes[0, 1].set_visible(False)
    figure.suptitle(title, fontsize=10, y=1.0)
    figure.subplots_adjust(wspace=0.12, hspace=0.32, top=0.84)
    return figure


def headline(
    metrics: pd.DataFrame, radii: Sequence[tuple[str, float]], untrained: Mapping[str, Any] | None = None
) -> Figure:
    """Bars of R@1, natural and under the worst attack, a panel a radius, with 95% intervals over queries.

    Args:
        metrics: rows of metrics.csv of one dataset and suite, one seed (or several, pooled). † marks a model with a
            gate that does not hold.
        radii: panel titles with their eps; eps 0 is the natural outcome.
        untrained: what :func:`dml.evaluation.controls.attacked_histogram` gave, a line across each panel.
    """
    losses = sorted(metrics["loss"].unique())
    defenses = order(metrics["defense"])
    figure, panels = plt.subplots(1, len(radii), figsize=(3.9 * len(radii), 3.9), sharey=True, squeeze=False)
    width = 0.8 / len(defenses)
    for axes, (title, eps) in zip(panels[0], radii, strict=True):
        attack = "worst" if eps else "none"
        rows = metrics[(metrics["attack"] == attack) & np.isclose(metrics["eps"], eps)]
        for place, defense in enumerate(defenses):
            bars = rows[rows["defense"] == defense].set_index("loss").reindex(losses)
            failed = bars["gates"].eq("fail")
            x = np.arange(len(losses)) + (place - (len(defenses) - 1) / 2) * width
            axes.bar(x, bars["r1"], width * 0.92, color=color(defense, defenses), label=spell(defense))
            error = [bars["r1"] - bars["r1_low"], bars["r1_high"] - bars["r1"]]
            axes.errorbar(x, bars["r1"], yerr=error, fmt="none", ecolor="black", elinewidth=1, capsize=3)
            for at, value, high, mark in zip(x, bars["r1"], bars["r1_high"], failed, strict=True):
                if np.isfinite(value):
                    digits = 3 if 0 < value < 0.01 else 2  # a few queries of thousands are not none
                    text = f"{value:.{digits}f}{'†' if mark else ''}"
                    plain = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the line of the untrained
                    axes.text(at, high + 0.015, text, ha="center", va="bottom", fontsize=9, bbox=plain)
        if untrained and (value := untrained["left"].get(radius_text(eps)) if eps else untrained["r1"]) is not None:
            axes.axhline(value, color="black", linestyle="--", linewidth=1.2, label="soft histogram, untrained")
        axes.set(title=title, xticks=range(len(losses)), xticklabels=losses, ylim=(0, 1.08))
        axes.grid(axis="x", visible=False)
    panels[0, 0].set_ylabel("R@1")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), bbox_to_anchor=(0.5, 1.07))
    figure.tight_layout()
    return figure


def attacks_compared(table: pd.DataFrame, *, title: str) -> Figure:
    """R@1 left by each attack by itself with 95% intervals, weak attacks on top.

    Args:
        table: ``attack, r1, r1_low, r1_high``, a row an attack in the order of drawing.
        title: above the figure.
    """
    labels = table["attack"].replace({"none": "none (natural)", "worst": "all of these"})
    figure, axes = plt.subplots(figsize=(7.2, 0.3 * len(table) + 1.2))
    y = np.arange(len(table))[::-1]
    error = [table["r1"] - table["r1_low"], table["r1_high"] - table["r1"]]
    axes.errorbar(table["r1"], y, xerr=error, fmt="o", color=COLORS["robust"], ecolor="grey", capsize=2)
    axes.set(yticks=y, yticklabels=labels, xlim=(-0.03, 1.03), xlabel="R@1 left")
    axes.grid(axis="y", visible=False)
    figure.suptitle(title)  # of the figure: the axes, beside long names, are too narrow for it
    figure.tight_layout()
    return figure


class Curve(NamedTuple):
    """What an attack leaves of one model as it grows stronger.

    Attributes:
        loss, defense: of the model.
        points: ``r1, r1_low, r1_high`` and what grows, ``steps`` or ``eps``.
        failed: whether a gate does not hold for the model; its curve is then marked †.
    """

    loss: str
    defense: str
    points: pd.DataFrame
    failed: bool = False


def accuracy_by_steps(curves: Sequence[Curve]) -> Figure:
    """R@1 left against the number of steps, a panel a loss, a line a defence, with 95% intervals over queries."""
    figure, panels = _panels(curves, "steps", 1)
    ticks = sorted({steps for curve in curves for steps in curve.points["steps"].tolist()})
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(steps) for steps in ticks])
        axes.minorticks_off()
        axes.set_xlabel("steps of Auto-PGD on the margin")
    return figure


def accuracy_by_eps(curves: Sequence[Curve], *, mark: Sequence[float] = ()) -> Figure:
    """R@1 left against the radius, a panel a loss, a line a defence, with 95% intervals over queries.

    Args:
        curves: one a model.
        mark: radii to point out.
    """
    figure, panels = _panels(curves, "eps", 255)
    for axes in panels:
        for eps in mark:
            axes.axvline(eps * 255, color="grey", linestyle=":", linewidth=1)
        axes.set_xscale("symlog", linthresh=2)
        axes.set_xlim(-0.15, 36)
        ticks = (0, 1, 2, 4, 8, 16, 32)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("eps of the l-inf ball (1/255)")
    return figure


def _panels(curves: Sequence[Curve], column: str, unit: float) -> tuple[Figure, list[Axes]]:
    """A panel a loss, a line a defence, against ``column`` times ``unit``."""
    losses, defenses = sorted({curve.loss for curve in curves}), order([curve.defense for curve in curves])
    figure, panels = plt.subplots(1, len(losses), figsize=(4.9 * len(losses), 3.8), sharey=True, squeeze=False)
    for axes, loss in zip(panels[0], losses, strict=True):
        for curve in sorted(curves, key=lambda curve: defenses.index(curve.defense)):
            if curve.loss != loss:
                continue
            tint, points = color(curve.defense, defenses), curve.points
            x, mark = points[column] * unit, marker(curve.defense, defenses)
            axes.plot(x, points["r1"], color=tint, marker=mark, label=spell(curve.defense))
            if curve.failed:
                axes.annotate("†", (x.iloc[-1], points["r1"].iloc[-1]), xytext=(5, 3), textcoords="offset points")
            axes.fill_between(x, points["r1_low"], points["r1_high"], color=tint, alpha=0.18, linewidth=0)
        axes.set(title=loss, ylim=(-0.02, 1.02))
    panels[0, 0].set_ylabel("R@1 left")
    names = {
        label: handle for axes in panels[0] for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(names.values(), names.keys(), loc="upper center", ncols=len(names), bbox_to_anchor=(0.5, 1.07))
    figure.tight_layout()
    return figure, list(panels[0])


def certified_curves(metrics: pd.DataFrame) -> Figure:
    """R@1 against the l2 radius, certified and under attack, a panel a loss, a colour a defence.

    Args:
        metrics: rows of metrics.csv of one dataset and of norm l2, one seed (or several, pooled).
    """
    lines = {"certified": "-", "smoothed": "--", "base": ":"}
    losses, defenses = sorted(metrics["loss"].unique()), order(metrics["defense"])
    figure, panels = plt.subplots(1, len(losses), figsize=(4.9 * len(losses), 3.8), sharey=True, squeeze=False)
    for axes, loss in zip(panels[0], losses, strict=True):
        for defense in defenses:
            for attack, style in lines.items():
                rows = metrics[metrics["attack"].eq(attack) & metrics["loss"].eq(loss) & metrics["defense"].eq(defense)]
                rows = rows.sort_values("eps")
                axes.plot(
                    rows["eps"],
                    rows["r1"],
                    linestyle=style,
                    color=color(defense, defenses),
                    marker=marker(defense, defenses),
                    markersize=4,
                )
                if attack == "certified":
                    axes.fill_between(
                        rows["eps"],
                        rows["r1_low"],
                        rows["r1_high"],
                        color=color(defense, defenses),
                        alpha=0.18,
                        linewidth=0,
                    )
        axes.set(title=loss, xlabel="radius of the l2 ball (pixel units)", ylim=(-0.02, 1.02))
    panels[0, 0].set_ylabel("R@1")
    keys = [matplotlib.lines.Line2D([], [], color=color(d, defenses), marker=marker(d, defenses)) for d in defenses]
    keys += [matplotlib.lines.Line2D([], [], color="black", linestyle=style) for style in lines.values()]
    names = [*map(spell, defenses), "certified", "smoothed, attacked", "base, attacked"]
    figure.legend(keys, names, loc="upper center", ncols=len(keys), bbox_to_anchor=(0.5, 1.07), fontsize=9)
    figure.tight_layout()
    return figure


def embedding_map(
    gallery: np.ndarray,
    labels: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    class_names: Sequence[str],
    axes: Axes,
) -> None:
    """Embeddings of a few classes in two dimensions, and where the attack moves queries.

    Args:
        gallery: (N, D) of the classes shown.
        labels: (N,) of their classes.
        before, after: (Q, D) of queries, natural and attacked; an arrow joins the two.
        class_names: label -> name.
        axes: to draw on. The plane is that of the two largest principal components of ``gallery``.
    """
    centre = gallery.mean(0)
    plane = np.linalg.svd(gallery - centre, full_matrices=False)[2][:2].T
    # The sign of a principal axis is arbitrary: fix it, so that the same data give the same picture.
    plane = plane * np.sign(plane[np.abs(plane).argmax(0), [0, 1]])
    points, start, end = ((array - centre) @ plane for array in (gallery, before, after))
    palette = sns.color_palette("colorblind")
    for place, label in enumerate(np.unique(labels)):
        axes.scatter(
            *points[labels == label].T,
            s=16,
            color=palette[place % len(palette)],
            marker="os^DvPX*"[place % 8],
            alpha=0.6,
            linewidth=0,
            label=class_names[label][:36],
        )
    axes.quiver(*start.T, *(end - start).T, angles="xy", scale_units="xy", scale=1, width=0.004, color="black")
    axes.update_datalim(end)
    axes.autoscale_view()
    axes.set(xlabel="first principal component", ylabel="second principal component")
    axes.set_aspect("equal", adjustable="datalim")


def order(defenses: Sequence[str]) -> list[str]:
    """Defences as they stand in every figure and table: the undefended first, then by name."""
    return sorted(set(defenses), key=lambda name: (name != "standard", name))


def _bare(axes: Axes, keep_frame: bool = False) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    if not keep_frame:
        axes.set_frame_on(False)
