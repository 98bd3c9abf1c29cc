"""How numbers, names and tables are written in Markdown."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from dml.attacks.balls import radius_text
from dml.common.table import find
from dml.config.run import Figures
from dml.evaluation import CONTROLS

MARK = "†"  # beside the figures of a model with a gate that does not hold
CONTROL = "none"  # the loss of a control
MISSING = "–"
UNTESTED = "not tested here"  # verdict on a claim that nothing measured is about
TITLES = {"pixels_linear": "linear metric"}  # names that do not say what they are, as text
COLUMNS = 8  # at most in a table, so that a page needs no sideways scrolling


def spell(name: str) -> str:
    """Return a name of params.yaml as text: ``single_step`` is "single step"."""
    return TITLES.get(name, name.replace("_", " "))


def control_kind(control: str) -> str:
    """Return a word on the training of a control: ``fitted`` if it has a method ``fit``, or ``untrained``."""
    fitted = control in CONTROLS and hasattr(find(CONTROLS, control, "control"), "fit")
    return "fitted" if fitted else "untrained"


def model_text(loss: str, defense: str) -> str:
    """Return the name of a model, or of a control with a word on its training."""
    if loss == CONTROL:
        return f"{spell(defense)}, {control_kind(defense)}"
    return f"{spell(loss)}, {spell(defense)}"


def order(defenses: Iterable[str], figures: Figures) -> list[str]:
    """Return defences in the order of every table: baseline, the paper's, its peer, then the others by name."""
    first = [figures.baseline, figures.paper, figures.peer]
    return sorted(set(defenses), key=lambda name: (first.index(name) if name in first else len(first), name))


def interval(low: float, high: float, digits: int = 3) -> str:
    """Return both ends of an interval in brackets."""
    return f"({low:.{digits}f} to {high:.{digits}f})"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with fixed digits, or a dash where there is none."""
    return MISSING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def factor_text(factor: float, low: float, high: float) -> str:
    """Return a fold increase with its interval.

    Args:
        factor: NaN if there is none; infinite if nothing survived in the denominator. Only the lower end of the
            interval is then known.
        low, high: ends of its 95% interval.
    """
    if math.isnan(factor):
        return MISSING
    if math.isinf(factor):
        return f"at least {low:.1f}"
    return f"{factor:.1f} {interval(low, high, 1)}"


def chance_text(chance: float) -> str:
    """Return a p-value."""
    return "< 0.0001" if chance < 1e-4 else f"{chance:.4f}"


def verdict_text(verdict: str) -> str:
    """Return a verdict in bold, unless there is none."""
    return verdict if verdict == UNTESTED else f"**{verdict}**"


def time_text(seconds: float | None) -> str:
    """Return a duration in the unit that people would choose."""
    if not seconds or math.isnan(seconds):
        return MISSING
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count(number: int, noun: str, plural: str = "") -> str:
    """Return "1 run" or "1,200 runs"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def settings_text(value: Any, key: str = "") -> str:
    """Return settings as one line in the notation of params.yaml; radii as people write them."""
    if isinstance(value, dict):
        inner = ", ".join(f"{name}: {settings_text(item, name)}" for name, item in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(settings_text(item, key) for item in value)}]"
    if isinstance(value, float):
        short = f"{value:g}"
        return radius_text(value) if key in ("eps", "step_size") and len(short) > 5 else short
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table as lines of Markdown, an empty line before it.

    Raises:
        ValueError: more than eight columns; the table must be split or turned.
    """
    if len(header) > COLUMNS:
        raise ValueError(f"a table has {len(header)} columns; it must have at most {COLUMNS}")
    lines = [header, ["---"] * len(header), *rows]
    return ["", *("| " + " | ".join(cells) + " |" for cells in lines)]


def wide_table(
    header: Sequence[str], columns: Sequence[str], rows: Iterable[tuple[Sequence[str], Sequence[str]]]
) -> list[str]:
    """Return a table that is split where it has too many columns.

    Args:
        header: of the leading columns, which every part repeats.
        columns: of the others.
        rows: cells of the leading columns, and of the others.
    """
    rows, size = list(rows), COLUMNS - len(header)
    return [
        line
        for first in range(0, len(columns), size)
        for line in table(
            [*header, *columns[first : first + size]],
            [[*lead, *cells[first : first + size]] for lead, cells in rows],
        )
    ]


def details(summary: str, lines: Sequence[str]) -> list[str]:
    """Return lines that a reader unfolds by a click; nothing if there are none."""
    if not lines:
        return []
    return ["", f"<details><summary>{summary}</summary>", *lines, "", "</details>"]
