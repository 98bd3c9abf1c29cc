"""Figures and tables of chapter 6: how the tuples of a batch depend on each other, and what that does to training."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from dml.evaluation.plane import EPS, MARGIN, PAIR, Trained, TwoWays
from dml.reporting.spelling import interval, number, spell
from dml.reporting.style import COLORS, GREYS, HATCHES, MARKERS, WIDTH

MODELS = (GREYS[1], *COLORS)  # colours of the models whose batches are looked into, the first untrained
TUPLES = COLORS[:2]  # colours of the two tuples of a drawing


def two_ways(found: TwoWays) -> Figure:
    """Two tuples that share two images: a perturbation per role of a tuple, one per image, and what each costs."""
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(WIDTH * 1.3, 4.4), width_ratios=(1, 1, 0.8), layout="constrained"
    )
    for axes, made in ((left, found.robust), (middle, found.joint)):
        _tuples(axes, found.points)
        for role, images in made.images.items():
            for place, (image, moved) in enumerate(zip(getattr(PAIR, role), images.flatten(1), strict=True)):
                _arrow(axes, found.points[image], moved, TUPLES[place] if axes is left else "black")
    left.set(title="robust: one perturbation per tuple", ylabel="second pixel")
    middle.set(title="joint: one perturbation per image", yticklabels=[])
    places = np.arange(len(found.shared))
    for tuple_, color in enumerate(TUPLES):
        heights = [values[tuple_] for values in found.shared.values()]
        right.bar(places + 0.38 * (tuple_ - 0.5), heights, 0.36, color=color, hatch=HATCHES[tuple_], edgecolor="white")
    right.axhline(0, color="black", linewidth=0.8)
    right.set_xticks(places, [name.replace(" ", "\n", 1) for name in found.shared])
    right.set(title="effect of moving image 2", xlabel="its perturbation", ylabel="change of d(a, p) − d(a, n)")
    right.grid(axis="x", visible=False)
    keys: list[Any] = [Patch(facecolor=color, hatch=HATCHES[n], edgecolor="white") for n, color in enumerate(TUPLES)]
    keys += [Line2D([], [], color="grey", linestyle=line) for line in ("-", "--")]
    keys.append(Patch(facecolor="#f2f2f2", edgecolor="grey"))
    names = ["tuple 1", "tuple 2", "anchor to positive", "anchor to negative", "ball of radius eps"]
    figure.legend(keys, names, loc="outside upper center", ncols=5, fontsize=10)
    return figure


def _tuples(axes: Axes, points: Tensor) -> None:
    """Four images with their balls and roles, and lines from each anchor to its positive and negative."""
    for image, (x, y) in enumerate(points.tolist()):
        corner = (x - EPS, y - EPS)
        axes.add_patch(Rectangle(corner, 2 * EPS, 2 * EPS, facecolor="#f2f2f2", edgecolor="grey", linewidth=0.8))
        axes.plot(x, y, marker="os"[image // 2], color="black", markersize=8, zorder=6)
        axes.text(x, y + EPS + 0.012, f"image {image + 1}", ha="center", va="bottom", fontsize=10)
        lower = y - EPS - 0.012
        for place, color in enumerate(TUPLES):
            for role, rows in PAIR._asdict().items():
                if rows[place] == image:
                    text = f"{role} of {place + 1}"
                    axes.text(x, lower, text, ha="center", va="top", fontsize=9, color=color, fontweight="bold")
                    lower -= 0.042
    for place, color in enumerate(TUPLES):
        anchor, positive, negative = (points[rows[place]] for rows in PAIR)
        for other, line in ((positive, "-"), (negative, "--")):
            axes.plot(*np.stack([anchor, other], axis=1), color=color, linestyle=line, linewidth=1.6, alpha=0.6)
    axes.set(xlim=(0.08, 0.94), ylim=(0.14, 0.88), xlabel="first pixel", aspect="equal")
    axes.grid(visible=False)


def _arrow(axes: Axes, start: Tensor, end: Tensor, color: str) -> None:
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 2.4, "mutation_scale": 14, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end.tolist(), xytext=start.tolist(), arrowprops=style, zorder=5)


def plane(runs: Sequence[Trained]) -> Figure:
    """Embeddings of trainings in the plane, one circle per training, and the loss by step below.

    Every class is drawn on a separate ring, so that classes in one place do not hide each other. The pale arc is what
    its points reach within their balls.

    Args:
        runs: six trainings with different defences.
    """
    figure = plt.figure(figsize=(WIDTH, 10.0), layout="constrained")
    grid = figure.add_gridspec(3, 3, height_ratios=(1, 1, 0.8))
    for place, run in enumerate(runs):
        axes = figure.add_subplot(grid[place // 3, place % 3])
        _rings(axes, run)
        axes.set_title(f"{run.defense}\nR@1 {run.natural:.2f}, worst case {run.worst:.2f}", fontsize=10.5)
        if run.collapsed:
            axes.text(0, 0, "collapsed", ha="center", va="center", fontsize=12)
    axes = figure.add_subplot(grid[2, :])
    for place, run in enumerate(runs):
        smooth = pd.Series(run.losses).rolling(5, min_periods=1).mean()
        look = {"color": COLORS[place], "marker": MARKERS[place], "markevery": (place * 3, 20), "markersize": 5}
        axes.plot(np.arange(1, len(smooth) + 1), smooth, label=run.defense, linewidth=1.6, **look)
    axes.axhline(MARGIN, color="black", linestyle="--", linewidth=1.2, label="constant embedding")
    axes.set(xlabel="step of training", ylabel="training loss", ylim=(-0.01, None), xlim=(0, len(runs[0].losses) + 1))
    axes.legend(loc="upper right", ncols=2, fontsize=9, frameon=True)
    return figure


def _rings(axes: Axes, run: Trained) -> None:
    """The unit circle of one training: points by class, and the arcs that they reach."""
    classes = run.labels.unique().tolist()
    for place, label in enumerate(classes):
        radius, color = 0.5 + 0.5 * place / max(1, len(classes) - 1), COLORS[place % len(COLORS)]
        own, reached = (array[run.labels == label].reshape(-1, 2).numpy() for array in (run.embeddings, run.reached))
        middle = own.mean(0) / np.linalg.norm(own.mean(0))
        turned = reached @ np.array([[middle[0], -middle[1]], [middle[1], middle[0]]])
        away = np.arctan2(turned[:, 1], turned[:, 0])  # angles relative to the middle of the class
        arc = np.arctan2(middle[1], middle[0]) + np.linspace(away.min(), away.max(), 100)
        axes.plot(radius * np.cos(arc), radius * np.sin(arc), color=color, linewidth=4, alpha=0.25, zorder=2)
        mark = MARKERS[place // len(COLORS)]
        axes.scatter(*(radius * own).T, s=22, color=color, marker=mark, linewidth=0.4, edgecolor="white", zorder=3)
        axes.add_patch(Circle((0, 0), radius, fill=False, edgecolor="#e3e3e3", linewidth=0.6, zorder=1))
    axes.set(xlim=(-1.06, 1.06), ylim=(-1.06, 1.06), xticks=[], yticks=[], aspect="equal")
    axes.set_frame_on(False)


def plane_table(runs: Sequence[Trained]) -> pd.DataFrame:
    """Return one row per miner and defence: mean R@1 over seeds with the lowest and the highest, and collapses."""
    rows = []
    for miner in dict.fromkeys(run.miner for run in runs):
        for name in dict.fromkeys(run.defense for run in runs):
            own = [run for run in runs if (run.miner, run.defense) == (miner, name)]
            cells = {}
            for column, values in (
                ("natural R@1", [run.natural for run in own]),
                ("worst-case R@1", [run.worst for run in own]),
            ):
                cells[column] = f"{np.mean(values):.2f} {interval(min(values), max(values), 2)}"
            fell = f"{sum(bool(run.collapsed) for run in own)} of {len(own)}"
            rows.append({"miner": spell(miner), "training": name, **cells, "collapsed": fell})
    return pd.DataFrame(rows)


def batches(counts: np.ndarray, found: pd.DataFrame) -> Figure:
    """How often images occur in tuples, what a perturbation does to other tuples, and how often it helps them.

    Args:
        counts: (N, 3), tuples in which each image occurs as anchor, positive and negative.
        found: see :func:`dml.evaluation.dependence.means`, by ``model`` and ``adversary``.
    """
    names, models = list(dict.fromkeys(found["adversary"])), list(dict.fromkeys(found["model"]))
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(WIDTH * 1.3, 0.4 * len(names) + 1.7), width_ratios=(1.1, 0.9, 0.8), layout="constrained"
    )
    for place, model in enumerate(models):
        rows = found[found["model"] == model].set_index("adversary").loc[names]
        y = -np.arange(len(names)) - 0.24 * (place - (len(models) - 1) / 2)
        look = {"color": MODELS[place], "fmt": MARKERS[place], "markersize": 5.5, "elinewidth": 1}
        left.hlines(y, rows["shared"], rows["own"], color=MODELS[place], linewidth=1, alpha=0.5)
        left.errorbar(rows["own"], y, xerr=rows["own_half"], **look)
        left.errorbar(rows["shared"], y, xerr=rows["shared_half"], markerfacecolor="white", **look)
        middle.errorbar(rows["lowers"], y, xerr=rows["lowers_half"], **look)
    for axes in (left, middle):
        axes.set_yticks(-np.arange(len(names)), names if axes is left else [""] * len(names))
        axes.set_ylim(0.6 - len(names), 0.6)
        axes.grid(axis="y", visible=False)
        for place in range(1, len(names)):
            axes.axhline(0.5 - place, color="lightgrey", linewidth=0.6)
    left.axvline(0, color="black", linewidth=0.8)
    left.set(xlabel="change of d(a, p) − d(a, n)", title="own tuple (full), others (hollow)")
    middle.set(xlabel="share of perturbed images", title="helps another tuple", xlim=(0, 1))
    _roles(right, counts)
    keys = [Line2D([], [], color=MODELS[p], marker=MARKERS[p], linestyle="") for p in range(len(models))]
    figure.legend(keys, [f"{name} model" for name in models], loc="outside upper center", ncols=3, fontsize=10)
    return figure


def _roles(axes: Axes, counts: np.ndarray) -> None:
    """Bars of how many tuples hold an image, by the number of roles that it has in them."""
    total, roles = counts.sum(1), (counts > 0).sum(1)
    below = np.zeros(total.max() + 1)
    for some, color in zip((1, 2, 3), ("#b0b0b0", COLORS[5], COLORS[0]), strict=True):
        share = np.bincount(total[roles == some], minlength=len(below)) / len(total)
        label = f"in {some} role{'s' if some > 1 else ''}"
        axes.bar(np.arange(len(below)), share, 0.85, bottom=below, color=color, label=label, linewidth=0)
        below += share
    axes.set(xlabel="tuples that hold an image", ylabel="share of the images", title="an image in its batch")
    axes.set(xlim=(0.4, len(below) - 0.4), ylim=(0, 1.08 * below.max()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=9)


def batch_table(found: pd.DataFrame) -> pd.DataFrame:
    """Return :func:`dml.evaluation.dependence.means` as text, every mean with half of its 95% interval."""
    labels = {
        "rises": "loss rises",
        "falls": "loss falls",
        "change": "mean change",
        "own": "own tuple",
        "shared": "tuples that share the image",
        "lowers": "helps another tuple",
    }
    text = {
        label: [
            f"{number(mean)} ± {number(half)}" for mean, half in zip(found[name], found[f"{name}_half"], strict=True)
        ]
        for name, label in labels.items()
    }
    return pd.DataFrame({"model": found["model"], "adversary": found["adversary"], **text})
