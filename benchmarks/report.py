"""All benchmarks of speed, one after the other: what they print, the machine, and a picture of their ratios.

    python -m benchmarks.report                      all of them
    python -m benchmarks.report retrieval --quick    one of them, at a size that only shows that it runs

Writes results/benchmarks.md, benchmarks.png and benchmarks.svg, anew after each benchmark. Each has a process of its
own. `precision` needs the models of `make repro`. Left out are benchmarks/strength.py, which measures no time, and
benchmarks/dry_run.py, which takes 21 GB.
"""

import argparse
import importlib
import io
import os
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure

from dml.common.files import ROOT, write_text
from dml.models.bfloat16 import computed
from dml.models.embedder import best_device
from dml.reporting import style

# What each is told for a quick look.
QUICK: dict[str, str] = {
    "robust_step": "--models conv4:16 --steps 1 2 --batch 8 --rounds 1",
    "throughput": "--models conv4:16 --batch 8 --steps 1 --rounds 1 --product 64 --no-others",
    "attacks": "--queries 4 --steps 2 --rounds 1 --galleries 2000",
    "evaluate": "--models conv4:16:4 --images 100 --galleries 200",
    "precision": "--queries 4",
    "retrieval": "--sizes 300:30 --dimension 32 --rounds 1",
    "beside": "--models conv4:16 --batch 8 --rounds 1",
    "loading": "--classes 4 --crop 32 --steps 2",
    "prepare": "--images 60",
}
NEEDED = Path("artifacts", "models", "glyphs")  # by `precision`
TICKS = [2.0**power for power in range(-10, 11)]  # of the picture


class Measured(NamedTuple):
    """What a benchmark found.

    Attributes:
        text: what it printed.
        ratios: costs relative to a reference, by what is compared.
    """

    text: str
    ratios: dict[str, float]


class Tee(io.StringIO):
    """Keeps what is written to it and shows it at once."""

    def write(self, text: str) -> int:
        """Keep and show."""
        print(text, end="", file=sys.__stdout__, flush=True)
        return super().write(text)


def run(name: str, words: Sequence[str]) -> Measured:
    """Run a benchmark in this process."""
    with redirect_stdout(Tee()) as told:
        ratios = importlib.import_module(f"benchmarks.{name}").main(words)
    return Measured(told.getvalue(), ratios)


def missing(name: str) -> str | None:
    """Return why a benchmark cannot run here, or None."""
    if name != "precision":
        return None
    if not (ROOT / NEEDED).is_dir():
        return f"{NEEDED} does not exist; `make repro` makes it"
    slow = "this processor computes bfloat16 in software; `throughput` tells how slowly"
    return None if computed(best_device()) else slow


def machine() -> str:
    """Return a list of what decides the numbers: processor, cores, load, versions, threads and date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    told = {
        "processor": models[0] if models else platform.machine(),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads of torch": torch.get_num_threads(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    return "\n".join(f"- {name}: {value}" for name, value in told.items())


def page(found: dict[str, Measured], about: str, *, quick: bool) -> str:
    """Return the report in Markdown: the machine, the picture, and a section per benchmark."""
    parts = ["# Benchmarks", "`make bench` writes this page. Compare ratios: times depend on the machine.", about]
    if quick:
        parts.append("**A quick run at tiny sizes: it shows that the benchmarks run, and its numbers mean nothing.**")
    if any(measured.ratios for measured in found.values()):
        parts.append("![Time relative to a reference, one bar per comparison](benchmarks.png)")
    for name, measured in found.items():
        text = (importlib.import_module(f"benchmarks.{name}").__doc__ or "").strip()
        lines = "\n".join(line.rstrip() for line in measured.text.strip("\n").splitlines())
        parts += [f"## {name}", text, f"```\n{lines}\n```"]
    return "\n\n".join(parts) + "\n"


def draw(found: dict[str, Measured]) -> Figure:
    """Return bars from 1 to each ratio on a logarithmic axis, a colour per benchmark."""
    style.theme()
    rows = [(name, *ratio) for name, measured in found.items() for ratio in measured.ratios.items()]
    figure, (panel,) = style.panels(1, columns=1, height=0.8 + 0.26 * len(rows))
    figure.set_figwidth(style.WIDTH)
    names = list(dict.fromkeys(name for name, _, _ in rows))
    for place, (name, _, ratio) in enumerate(rows):
        color = (*style.COLORS, *style.GREYS)[names.index(name)]
        panel.barh(place, ratio - 1, left=1, color=color, height=0.7, label=name)
        side = {"ha": "left", "xytext": (4, 0)} if ratio >= 1 else {"ha": "right", "xytext": (-4, 0)}
        panel.annotate(f"{ratio:.2f}", (ratio, place), textcoords="offset points", va="center", fontsize=8, **side)
    panel.set_yticks(range(len(rows)), [told for _, told, _ in rows], fontsize=9)
    ratios = [ratio for _, _, ratio in rows]
    low, high = min([0.5, *ratios]) / 1.6, max([2, *ratios]) * 1.6
    panel.set(xscale="log", xlim=(low, high), ylim=(len(rows) - 0.4, -0.6), xlabel="time / reference")
    panel.set_xticks(ticks := [tick for tick in TICKS if low < tick < high], [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.axvline(1, color="black", linewidth=1)
    panel.grid(visible=False, axis="y")
    handles, labels = panel.get_legend_handles_labels()
    first = dict(zip(reversed(labels), reversed(handles), strict=True))
    style.legend_above(figure, [first[name] for name in names], names)
    return figure


def main(words: Sequence[str] | None = None) -> None:
    """Run benchmarks and write the report after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(QUICK)}; all if left out")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for a look at the report")
    parser.add_argument("--output", type=Path, default=ROOT / "results", help="folder for the report")
    chosen = parser.parse_args(words)
    if unknown := set(chosen.names) - set(QUICK):
        parser.error(f"{sorted(unknown)[0]!r} is no benchmark; known: {', '.join(QUICK)}")
    about, found = machine(), {}
    for name in chosen.names or QUICK:
        print(f"\n== {name}", flush=True)
        if why := missing(name):
            found[name] = Measured(f"Not run: {why}.", {})
            print(found[name].text)
        else:
            options = QUICK[name].split() if chosen.quick else []
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found[name] = process.submit(run, name, options).result()
        if any(measured.ratios for measured in found.values()):
            style.save(draw(found), chosen.output, "benchmarks", "Time relative to a reference")
        write_text(chosen.output / "benchmarks.md", page(found, about, quick=chosen.quick))
    print(f"\nwrote {chosen.output / 'benchmarks.md'}")


if __name__ == "__main__":
    main()
