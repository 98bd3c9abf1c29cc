"""The look of all figures: theme, colours, panels, and files that are the same bytes for the same drawing."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from dml.common.files import atomic
from dml.config.run import Figures
from dml.reporting.spelling import CONTROL, model_text, order, spell
from dml.reporting.variants import OWN

WIDTH = 9.0  # inches: a page on GitHub shows about 100 pixels per inch of it
# Okabe and Ito's colours, which readers with any colour vision can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^DvPp"
OWN_COLOR = COLORS[4]  # of this project's defences
OTHER, LEADING = "#8aa0b4", "#333333"  # of defences without a named colour among many, and of the best of them
GREYS = ("#4d4d4d", "#8c8c8c", "#b0b0b0")  # of controls
GREY_MARKERS = "xXd*"
DASHES = ("--", ":", "-.", (0, (1, 3)))
HATCHES = ("", "////", "....", "xxxx")
RIGHT, WRONG = COLORS[2], COLORS[1]


class Look(NamedTuple):
    """How a model is drawn in every figure."""

    color: str
    marker: str
    line: str | tuple
    hatch: str
    label: str


class Palette:
    """The looks of all models of a dataset: a colour and a marker per defence, greys for controls.

    The baseline, the paper's defence, its peer and the project's own defences have the same colours in every dataset.

    Args:
        models: loss and defence of each.
        figures: gives the order of the defences.
    """

    def __init__(self, models: Iterable[tuple[str, str]], figures: Figures) -> None:
        models = set(models)
        self.defenses = order((defense for loss, defense in models if loss != CONTROL), figures)
        self.controls = sorted(defense for loss, defense in models if loss == CONTROL)
        self.losses = sorted({loss for loss, _ in models if loss != CONTROL})
        first = (figures.baseline, figures.paper, figures.peer)
        fixed = dict(zip(first, COLORS, strict=False)) | dict.fromkeys(OWN, OWN_COLOR)
        self.colors = {name: fixed[name] for name in self.defenses if name in fixed}
        free = [color for color in COLORS if color not in fixed.values()]
        free += [color for color in COLORS if color not in free and color not in self.colors.values()]
        others = [name for name in self.defenses if name not in fixed]
        self.colors |= {name: free[place % len(free)] for place, name in enumerate(others)}

    @property
    def models(self) -> list[tuple[str, str]]:
        """Return one (loss, defence) per look: every defence with some loss, then the controls."""
        loss = self.losses[0] if self.losses else ""
        return [(loss, name) for name in self.defenses] + [(CONTROL, name) for name in self.controls]

    def look(self, loss: str, defense: str) -> Look:
        """Return the look of a model; losses of one defence share it."""
        if loss == CONTROL:
            place = self.controls.index(defense)
            grey, mark, line = (values[place % len(values)] for values in (GREYS, GREY_MARKERS, DASHES))
            return Look(grey, mark, line, HATCHES[place % len(HATCHES)], model_text(loss, defense))
        place, color = self.defenses.index(defense), self.colors[defense]
        alike = sum(self.colors[name] == color for name in self.defenses[:place])
        return Look(color, MARKERS[place % len(MARKERS)], "-", HATCHES[alike % len(HATCHES)], spell(defense))

    def recolored(self, defenses: Iterable[str], color: str) -> "Palette":
        """Return a copy in which some defences have another colour."""
        other = copy.copy(self)
        other.colors = self.colors | dict.fromkeys(defenses, color)
        return other


def theme() -> None:
    """Set the look of all figures; call it once at the top of a notebook."""
    sns.set_theme(style="whitegrid", context="notebook")
    matplotlib.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "svg.hashsalt": "dml",  # same drawing, same bytes
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "legend.frameon": False,
            "hatch.linewidth": 0.6,
        }
    )


def save(figure: Figure, folder: Path, name: str, caption: str = "") -> Path:
    """Write a figure as PNG and SVG and close it; the same figure gives the same bytes.

    Args:
        figure: to write.
        folder, name: of the files, without an ending.
        caption: kept inside the PNG, for pages that are written when the figure is not drawn again.

    Returns:
        The PNG.
    """
    described = {"Software": None} | ({"Description": caption} if caption else {})
    for ending, metadata in (("png", described), ("svg", {"Date": None})):
        with atomic(folder / f"{name}.{ending}") as partial:
            figure.savefig(partial, format=ending, bbox_inches="tight", metadata=metadata)
    plt.close(figure)
    return folder / f"{name}.png"


def caption_of(file: Path) -> str:
    """Return the caption inside a PNG, or the words of its name if there is none."""
    with Image.open(file) as image:
        return image.info.get("Description") or spell(file.stem)


def panels(count: int, *, columns: int = 2, height: float = 3.4, share: bool = True) -> tuple[Figure, list[Axes]]:
    """Return a figure of page width with some panels, at most ``columns`` in a row.

    Args:
        count: of panels.
        columns: in a row, at most.
        height: of a row, inches.
        share: whether all panels have the same axes.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    width = WIDTH if columns > 1 else 0.62 * WIDTH
    figure, grid = plt.subplots(
        rows, columns, figsize=(width, height * rows), sharex=share, sharey=share, squeeze=False
    )
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    for panel in axes[:count] if columns > 1 else []:  # a panel with nothing below it needs its own ticks
        panel.tick_params(labelbottom=True)
    return figure, axes[:count]


def legend_above(figure: Figure, handles: list, labels: list[str], columns: int = 4) -> None:
    """Lay the figure out and put one legend above all panels."""
    figure.tight_layout()
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    figure.legend(handles, labels, ncols=min(columns, max(1, len(labels))), fontsize=10, **place)


def inside(gates: str, look: Look) -> str:
    """Return the colour inside a mark: hollow if a gate does not hold."""
    return "white" if gates == "fail" else look.color


def key_mark(color: str, marker: str) -> Line2D:
    """Return a mark for a legend."""
    return Line2D([], [], color=color, marker=marker, linestyle="", markeredgewidth=1.5)
