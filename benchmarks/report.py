"""All benchmarks of speed, one after the other: what they print, the machine, and a figure of the ratios.

    python -m benchmarks.report                      all of them
    python -m benchmarks.report retrieval            one of them; the others stay as they were measured
    python -m benchmarks.report --quick              at a size that only shows that they run

Writes results/benchmarks.json, and the page and figure benchmarks.md, benchmarks.png and benchmarks.svg of it, anew
after each benchmark. Each runs in its own process. `precision` needs the models of `make repro`. Left out are
benchmarks/strength.py, which measures no time, and benchmarks/dry_run.py, which takes 21 GB.
"""

import argparse
import importlib
import io
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure

from dml.common.files import ROOT, write_json, write_text
from dml.models.bfloat16 import computed
from dml.models.embedder import best_device
from dml.reporting import style

# What each is told for a quick look.
QUICK: dict[str, str] = {
    "robust_step": "--models conv4:16 --steps 1 2 --batch 8 --rounds 1",
    "training_step": "--models conv4:16:2 --steps 1 --batch 8 --rounds 1",
    "whole_training": "--batches 2 --rounds 1",
    "throughput": "--models conv4:16 --batch 8 --steps 1 --rounds 1 --product 64 --no-others",
    "attacks": "--queries 4 --steps 2 --rounds 1 --galleries 2000",
    "evaluate": "--models conv4:16:4 --images 100 --galleries 200",
    "precision": "--queries 4",
    "retrieval": "--sizes 300:30 --dimension 32 --rounds 1",
    "beside": "--models conv4:16 --batch 8 --rounds 1",
    "memory": "--models conv4:16 --batch 8 --rounds 1 --processes 1",
    "loading": "--classes 4 --crop 32 --steps 2",
    "prepare": "--images 60",
}
NEEDED = Path("artifacts", "models", "glyphs")  # by `precision`
TICKS = [2.0**power for power in range(-10, 11)]  # of the figure


class Measured(NamedTuple):
    """What a benchmark found.

    Attributes:
        text: what it printed.
        ratios: costs relative to a reference, by what is compared.
        machine: what decides the numbers; see :func:`machine`.
    """

    text: str
    ratios: dict[str, float]
    machine: dict[str, str]


class Tee(io.StringIO):
    """Keeps what is written to it and shows it at once."""

    def write(self, text: str) -> int:
        """Keep and show."""
        print(text, end="", file=sys.__stdout__, flush=True)
        return super().write(text)


def run(name: str, words: Sequence[str], about: dict[str, str]) -> Measured:
    """Run a benchmark in this process, of the machine that is told."""
    with redirect_stdout(Tee()) as told:
        ratios = importlib.import_module(f"benchmarks.{name}").main(words)
    return Measured(told.getvalue(), ratios, about)


def missing(name: str) -> str | None:
    """Return why a benchmark cannot run here, or None."""
    if name != "precision":
        return None
    if not (ROOT / NEEDED).is_dir():
        return f"{NEEDED} does not exist; `make repro` makes it"
    slow = "this processor computes bfloat16 in software; `throughput` tells how slowly"
    return None if computed(best_device()) else slow


def machine() -> dict[str, str]:
    """Return what decides the numbers: processor, cores, versions, threads, date, and the load before."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads of torch": str(torch.get_num_threads()),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def page(found: Mapping[str, Measured], *, quick: bool) -> str:
    """Return the report in Markdown: the machine, the figure, and a section per benchmark."""
    first = next(iter(found.values())).machine
    parts = ["# Benchmarks", "`make bench` writes this page. Compare ratios: times depend on the machine."]
    parts.append("\n".join(f"- {name}: {value}" for name, value in first.items()))
    if quick:
        parts.append("**A quick run at tiny sizes: it shows that the benchmarks run, and its numbers mean nothing.**")
    if any(measured.ratios for measured in found.values()):
        parts.append("![Time relative to a reference, one bar per comparison](benchmarks.png)")
    for name, measured in found.items():
        text = (importlib.import_module(f"benchmarks.{name}").__doc__ or "").strip()
        lines = "\n".join(line.rstrip() for line in measured.text.strip("\n").splitlines())
        parts += [f"## {name}", text]
        if other := [f"{key} {value}" for key, value in measured.machine.items() if value != first.get(key)]:
            parts.append(f"Of this section: {', '.join(other)}.")
        parts.append(f"```\n{lines}\n```")
    return "\n\n".join(parts) + "\n"


def measured_before(file: Path, *, quick: bool) -> dict[str, Measured]:
    """Return the benchmarks that an earlier report holds, or none where it was made at other sizes."""
    if not file.exists():
        return {}
    kept = json.loads(file.read_text(encoding="utf-8"))
    return {name: Measured(**value) for name, value in kept["benchmarks"].items()} if kept["quick"] == quick else {}


def draw(found: Mapping[str, Measured]) -> Figure:
    """Return bars from 1 to each ratio on a logarithmic axis, a colour, or a pattern on it, per benchmark."""
    style.theme()
    rows = [(name, *ratio) for name, measured in found.items() for ratio in measured.ratios.items()]
    figure, (panel,) = style.panels(1, columns=1, height=0.8 + 0.26 * len(rows))
    figure.set_figwidth(style.WIDTH)
    names, colors = list(dict.fromkeys(name for name, _, _ in rows)), (*style.COLORS, *style.GREYS)
    for place, (name, _, ratio) in enumerate(rows):
        again, color = divmod(names.index(name), len(colors))
        look = {"color": colors[color], "hatch": style.HATCHES[again], "edgecolor": "white", "linewidth": 0}
        panel.barh(place, ratio - 1, left=1, height=0.7, label=name, **look)
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
    """Run benchmarks, and write the report after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(QUICK)}; all if left out")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for a look at the report")
    parser.add_argument("--output", type=Path, help="for the report: results/, or scratch/benchmarks of a quick run")
    chosen = parser.parse_args(words)
    output = chosen.output or ROOT / ("scratch/benchmarks" if chosen.quick else "results")
    if unknown := set(chosen.names) - set(QUICK):
        parser.error(f"{sorted(unknown)[0]!r} is no benchmark; known: {', '.join(QUICK)}")
    file = output / "benchmarks.json"
    about, known = machine(), measured_before(file, quick=chosen.quick)
    for name in chosen.names or QUICK:
        print(f"\n== {name}", flush=True)
        if why := missing(name):
            known[name] = Measured(f"Not run: {why}.", {}, about)
            print(known[name].text)
        else:
            options = QUICK[name].split() if chosen.quick else []
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                known[name] = process.submit(run, name, options, about).result()
        found = {name: known[name] for name in QUICK if name in known}
        if any(measured.ratios for measured in found.values()):
            style.save(draw(found), output, "benchmarks", "Time relative to a reference")
        kept = {name: measured._asdict() for name, measured in found.items()}
        write_json(file, {"quick": chosen.quick, "benchmarks": kept})
        write_text(output / "benchmarks.md", page(found, quick=chosen.quick))
    print(f"\nwrote {output / 'benchmarks.md'}")


if __name__ == "__main__":
    main()
