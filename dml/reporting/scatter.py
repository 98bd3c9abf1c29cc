"""The scatter of natural against adversarial R@1, with its Pareto front."""

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scipy.optimize import isotonic_regression

from dml.attacks.balls import radius_text
from dml.reporting.spelling import CONTROL, spell
from dml.reporting.style import COLORS, LEADING, MARKERS, OTHER, WIDTH, Palette, inside, key_mark, legend_above, panels
from dml.reporting.tables import best_control

NEAR_ONE = 0.9  # median of natural R@1 above which the axis is stretched towards 1
TICKS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)  # of the stretched axis
LEADERS = 3  # models with the most adversarial R@1 that have a name among many
MARGIN = 0.01  # natural R@1 beyond 1 at which the stretched axis would end


def crowded(palette: Palette) -> bool:
    """Return whether a dataset has more defences than there are colours to tell them apart."""
    return len(palette.defenses) > len(COLORS)


def scatter(
    tables: Mapping[float, pd.DataFrame],
    palette: Palette,
    colored: Collection[str] = (),
    named: Collection[tuple[str, str]] = (),
) -> Figure:
    """Natural against adversarial R@1: one colour per defence, one marker per loss.

    The grey steps are the Pareto front: no trained model lies above and to the right of them. Of many defences only the
    largest radius is drawn. Then only the models on the front, the leading ones and the named ones have intervals and a
    name beside them, only some defences have a colour, and the best control is a line at its adversarial R@1; controls
    are crosses where they lie in the range of the models. Where most models are close to 1, the natural axis is
    stretched there.

    Args:
        tables: radius -> :func:`dml.reporting.tables.comparison`. A hollow mark has a gate that does not hold.
        palette: of the dataset. Untrained controls are grey.
        colored: defences that have a colour among many.
        named: loss and defence of models that have a name among many, whether or not they are on the front.
    """
    if crowded(palette):
        eps = max(tables)
        return _crowded_scatter(eps, tables[eps], palette, colored, named)
    figure, axes = panels(len(tables), height=4.0, share=False)
    for panel, (eps, found) in zip(axes, tables.items(), strict=True):
        diagonal = np.linspace(0, 1, 200)  # a curve where the axis is stretched
        panel.plot(diagonal, diagonal, color="grey", linestyle=":", linewidth=1)
        _marks(panel, found, palette)
        panel.set(title=f"eps {radius_text(eps)}", xlabel="natural R@1")
        _frame(panel, found, found)
    axes[0].set_ylabel("adversarial R@1")
    looks = [palette.look(*model) for model in palette.models]
    keys = [Patch(color=look.color) for look in looks[: len(palette.defenses)]]
    keys += [key_mark(look.color, look.marker) for look in looks[len(palette.defenses) :]]
    keys += [key_mark("black", _loss_marker(loss, palette)) for loss in palette.losses]
    keys += [Line2D([], [], color="grey", linestyle=":"), Line2D([], [], color="silver", linewidth=3)]
    losses = [f"{spell(loss)} loss" for loss in palette.losses]
    legend_above(figure, keys, [*(look.label for look in looks), *losses, "no query broken", "Pareto front"])
    return figure


def _crowded_scatter(
    eps: float, found: pd.DataFrame, palette: Palette, colored: Collection[str], named: Collection[tuple[str, str]]
) -> Figure:
    """One wide panel at one radius, over the range of the trained models, with names beside the marks that matter."""
    figure, panel = plt.subplots(figsize=(WIDTH, 5.4))
    trained = found[found["loss"] != CONTROL]
    leading = [*pareto_front(trained).index, *trained["r1"].nlargest(LEADERS).index]
    models = pd.Series(list(zip(trained["loss"], trained["defense"], strict=True)), trained.index)
    shown = models.isin(list(named)) | trained.index.isin(leading)
    palette = palette.recolored(set(trained.loc[shown, "defense"]) - set(colored), LEADING)
    _marks(panel, trained[shown], palette)
    for row in trained[~shown].itertuples():
        hollow = "white" if row.gates == "fail" else OTHER
        mark = {"color": OTHER, "markerfacecolor": hollow, "markersize": 5, "linestyle": ""}
        panel.plot(row.natural, row.r1, marker=_loss_marker(row.loss, palette), zorder=1, **mark)
    panel.set(xlabel="natural R@1", ylabel="adversarial R@1", title=f"eps {radius_text(eps)}")
    control = best_control(found)
    least = [trained] if control is None else [trained, control.to_frame().T]
    _frame(panel, trained, pd.concat(least))
    keys = [key_mark("black", _loss_marker(loss, palette)) for loss in palette.losses]
    labels = [f"{spell(loss)} loss" for loss in palette.losses]
    if control is not None:
        look = palette.look(CONTROL, control["defense"])
        panel.axhline(control["r1"], color=look.color, linestyle="--", linewidth=1.2)
        within = found["natural"].gt(panel.get_xlim()[0]) & found["r1"].gt(panel.get_ylim()[0])
        seen = found[found["loss"].eq(CONTROL) & within]
        panel.plot(seen["natural"], seen["r1"], color=look.color, marker="x", linestyle="")
        keys += [Line2D([], [], color=look.color, linestyle="--"), key_mark(look.color, "x")][: 2 - seen.empty]
        labels += [f"best control ({look.label})", "controls"][: 2 - seen.empty]
    _names(panel, trained[shown], palette)
    keys += [Line2D([], [], color="silver", linewidth=3), key_mark(OTHER, _loss_marker(palette.losses[0], palette))]
    legend_above(figure, keys, [*labels, "Pareto front", "other models"], columns=3)
    return figure


def stretched(found: pd.DataFrame) -> bool:
    """Return whether the natural axis of many models is stretched: if most trained ones lie close to 1."""
    return bool(found.loc[found["loss"] != CONTROL, "natural"].median() > NEAR_ONE)


def _frame(panel: Axes, across: pd.DataFrame, up: pd.DataFrame) -> None:
    """Set both axes to the range of some models: of their natural R@1, and of the adversarial R@1 of others."""
    panel.set(xlim=_limits(across, "natural"), ylim=_limits(up, "r1"))
    panel.set_yticks([tick for tick in panel.get_yticks() if 0 <= tick <= panel.get_ylim()[1]])
    if stretched(across):
        left = max(0.0, across["natural_low"].min() - 0.02)
        panel.set_xscale("function", functions=(_stretch, _shrink))
        panel.set_xlim(left, 1.0)
        ticks = [tick for tick in TICKS if tick >= left]
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])


def _limits(found: pd.DataFrame, score: str) -> tuple[float, float]:
    """Ends of an axis: all marks and intervals of a score, with some room around them."""
    low, high = found[f"{score}_low"].min(), found[f"{score}_high"].max()
    room = 0.08 * (high - low) + 0.005
    return max(-0.03, low - room), min(1.03, high + room)


def _stretch(natural: np.ndarray) -> np.ndarray:
    """Natural R@1 by the logarithm of what is missing to 1, so that models that are close to 1 stand apart."""
    return -np.log(np.maximum(1.0 + MARGIN - np.asarray(natural), 1e-6))


def _shrink(place: np.ndarray) -> np.ndarray:
    """The inverse of :func:`_stretch`."""
    return 1.0 + MARGIN - np.exp(-np.asarray(place))


def _marks(panel: Axes, found: pd.DataFrame, palette: Palette) -> None:
    """A mark with both intervals per model, and the Pareto front of the trained ones."""
    front = pareto_front(found[found["loss"] != CONTROL])
    # The front falls from its left end on: a model there is matched by anything less natural.
    across, up = [0.0, *front["natural"], front["natural"].max()], [front["r1"].max(), *front["r1"], 0.0]
    panel.step(across, up, where="pre", color="silver", linewidth=3, zorder=0)
    for row in found.itertuples():
        look = palette.look(row.loss, row.defense)
        mark = look.marker if row.loss == CONTROL else _loss_marker(row.loss, palette)
        sides = [[row.natural - row.natural_low], [row.natural_high - row.natural]]
        ends = [[row.r1 - row.r1_low], [row.r1_high - row.r1]]
        style = {"color": look.color, "elinewidth": 1, "markersize": 7, "markerfacecolor": inside(row.gates, look)}
        panel.errorbar(row.natural, row.r1, xerr=sides, yerr=ends, fmt=mark, **style)


def pareto_front(found: pd.DataFrame) -> pd.DataFrame:
    """Return the models that no other beats in both natural and adversarial R@1, by rising natural R@1."""
    ranked = found.sort_values(["natural", "r1"], ascending=False)
    best = ranked["r1"].cummax()
    return ranked[ranked["r1"].gt(best.shift(fill_value=-1.0))].iloc[::-1]


def _names(panel: Axes, found: pd.DataFrame, palette: Palette) -> None:
    """Names of the models in a column at the right, highest first, each with a thin line to its mark."""
    ordered = found.sort_values(["r1", "natural"])
    low, high = panel.get_ylim()
    shares = ((ordered["r1"] - low) / (high - low)).tolist()  # of the panel's height
    heights = spread_out(shares, min(0.045, 1 / len(ordered)))
    several = ordered["defense"].duplicated(keep=False)
    for row, height, shared in zip(ordered.itertuples(), heights, several, strict=True):
        look = palette.look(row.loss, row.defense)
        name = f"{look.label} ({spell(row.loss)})" if shared else look.label
        line = {
            "arrowstyle": "-",
            "color": look.color,
            "linewidth": 0.6,
            "shrinkA": 2,
            "shrinkB": 4,
            "relpos": (0, 0.5),
        }
        where = {"textcoords": "axes fraction", "va": "center", "annotation_clip": False}
        panel.annotate(name, (row.natural, row.r1), (1.04, height), fontsize=9, arrowprops=line, **where)


def spread_out(values: Sequence[float], gap: float) -> list[float]:
    """Return the heights from 0 to 1 that are nearest to rising values and at least ``gap`` apart."""
    steps = gap * np.arange(len(values))
    return (isotonic_regression(values - steps).x.clip(0, 1 - steps[-1]) + steps).tolist()


def _loss_marker(loss: str, palette: Palette) -> str:
    return MARKERS[palette.losses.index(loss) % len(MARKERS)]
