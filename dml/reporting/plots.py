"""Figures of the notebooks on data, training and examples: images, counts, curves, embeddings."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from dml.reporting.style import COLORS, MARKERS, RIGHT, WIDTH, WRONG

Retrieved = Sequence[tuple[np.ndarray, bool]]
"""Images retrieved, best first, each with whether its class is the query's."""


def image_grid(rows: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """Rows of images, the title of each row beside it.

    Args:
        rows: (N, H, W, 3) each, uint8 or floats in [0, 1].
        titles: one per row.
    """
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


def perturbations(clean: Tensor, perturbed: Tensor, *, columns: int = 8) -> Figure:
    """Clean images, perturbed ones below them, and below those the change, amplified to span the full range.

    Args:
        clean, perturbed: (N, 3, H, W) in [0, 1].
        columns: of images, at most.
    """
    first, second = (images[:columns].permute(0, 2, 3, 1).cpu().numpy() for images in (clean, perturbed))
    largest = float(np.abs(second - first).max())
    change = (second - first) / (2 * largest) + 0.5 if largest else np.full_like(first, 0.5)
    amplified = f"change ×{0.5 / largest:.0f}" if largest else "no change"
    return image_grid([first, second, change.clip(0, 1)], ["clean", "perturbed", amplified])


def class_counts(counts: pd.DataFrame) -> Figure:
    """Images per class in each split.

    Args:
        counts: ``split, images``, one row per class.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.0))
    names = list(dict.fromkeys(counts["split"]))
    for place, name in enumerate(names):
        images = counts.loc[counts["split"] == name, "images"]
        apart = (np.arange(len(images)) * 0.618) % 1 - 0.5  # evenly spread, and the same every time
        axes.scatter(images, place + 0.4 * apart, s=16, alpha=0.6, linewidth=0, color=COLORS[place % len(COLORS)])
    axes.set(xlabel="images per class", xlim=(0, counts["images"].max() * 1.08), ylim=(len(names) - 0.5, -0.5))
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="y", visible=False)
    return figure


def training_curves(epochs: pd.DataFrame, chosen: int) -> Figure:
    """Loss and validation scores by epoch; a line marks the epoch that was kept.

    Args:
        epochs: ``loss`` and one column per validation score, one row per epoch.
        chosen: the epoch that was kept, counted from 0.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.2))
    x = np.arange(1, len(epochs) + 1)
    left.plot(x, epochs["loss"], color="black", marker="o")
    left.set(xlabel="epoch", ylabel="mean loss", title="Training", ylim=(min(0, epochs["loss"].min()), None))
    for place, name in enumerate(epochs.columns.drop("loss")):
        look = {"color": COLORS[place % len(COLORS)], "marker": MARKERS[place % len(MARKERS)]}
        right.plot(x, epochs[name], label=name, **look)
    right.set(xlabel="epoch", ylabel="R@1", title="Held-out training classes", ylim=(0, 1.02))
    for axes in (left, right):
        axes.axvline(chosen + 1, color="grey", linestyle=":", label="epoch kept" if axes is right else None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    return figure


def fooled_search(
    query: np.ndarray, perturbed: np.ndarray, before: Retrieved, after: Retrieved, *, eps: float, title: str
) -> Figure:
    """A query, its perturbation, and what is retrieved before and after; every result says whether it is right.

    Args:
        query, perturbed: (H, W, 3) in [0, 1].
        before, after: what the query retrieves, and what the perturbed query does.
        eps: radius of the perturbation, which is shown amplified so that eps spans the full range.
        title: above the figure.
    """
    columns = 2 + max(len(before), len(after))
    figure, axes = plt.subplots(2, columns, figsize=(1.25 * columns, 3.3))
    noise = np.clip((perturbed - query) / (2 * eps) + 0.5, 0, 1)
    for line, (image, retrieved, word) in enumerate(((query, before, "query"), (perturbed, after, "attacked"))):
        axes[line, 0].imshow(image)
        axes[line, 0].set_title(word, fontsize=9, fontweight="normal")
        for place, (item, right) in enumerate(retrieved):
            _result(axes[line, 2 + place], item, right, f"rank {place + 1}" if line == 0 else "")
        for unused in axes[line, 2 + len(retrieved) :]:
            unused.set_visible(False)
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


def _result(axes: Axes, item: np.ndarray, right: bool, title: str) -> None:
    """One retrieved image in a frame, with the word below it."""
    axes.imshow(item)
    axes.set_title(title, fontsize=9, fontweight="normal")
    for side in axes.spines.values():
        side.set(visible=True, color=RIGHT if right else WRONG, linewidth=4)
    word = "right" if right else "wrong"
    axes.text(0.5, -0.06, word, transform=axes.transAxes, ha="center", va="top", fontsize=8)


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
    # The sign of a principal axis is arbitrary: fix it, so that the same data give the same drawing.
    plane = plane * np.sign(plane[np.abs(plane).argmax(0), [0, 1]])
    points, start, end = ((array - centre) @ plane for array in (gallery, before, after))
    palette = sns.color_palette("colorblind")
    for place, label in enumerate(np.unique(labels)):
        look = {"color": palette[place % len(palette)], "marker": "os^DvPX*"[place % 8]}
        name = class_names[label][:36]
        axes.scatter(*points[labels == label].T, s=16, alpha=0.6, linewidth=0, label=name, **look)
    axes.quiver(*start.T, *(end - start).T, angles="xy", scale_units="xy", scale=1, width=0.004, color="black")
    axes.update_datalim(end)
    axes.autoscale_view()
    axes.set(xlabel="first principal component", ylabel="second principal component")
    axes.set_aspect("equal", adjustable="datalim")


def _bare(axes: Axes, keep_frame: bool = False) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    if not keep_frame:
        axes.set_frame_on(False)
