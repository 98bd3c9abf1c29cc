"""Cost of training when a process keeps freed memory, relative to handing it back to the system.

`python -m dml` keeps it (dml/common/memory.py), and so do the notebooks that it runs. Steps are timed in separate,
alternating processes, in seconds of the processor, the system's included. Page faults are per step.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.measure import model_and_numbers
from benchmarks.robust_step import work
from dml.common.files import ROOT
from dml.common.memory import keep_freed

MODELS = (("conv4", 32), ("resnet18", 64))  # backbone, side of an image
BATCH, ROUNDS, PROCESSES, ADVERSARY = 100, 9, 3, 4  # images, steps that are timed, in so many processes; PGD steps
KEEPS, RETURNS = "keeps", "returns"


def one(backbone: str, side: int, batch: int, rounds: int, way: str) -> dict[str, list[float]]:
    """Return the median seconds and page faults of each kind of step in this process."""
    if way == KEEPS:
        keep_freed()
    found = {}
    for name, step in work(backbone, side, batch, (ADVERSARY,)).items():
        if name in ("standard", f"robust, k={ADVERSARY}"):
            step()
            seconds, faults = [], resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(rounds):
                start = time.process_time()
                step()
                seconds.append(time.process_time() - start)
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            found[name] = [statistics.median(seconds), faults / rounds]
    return found


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Print one line per model and kind of step; return the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", type=model_and_numbers, default=MODELS, help="backbone:side")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which the median counts, in each process")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="for each way, of which the median counts")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    chosen, ratios = parser.parse_args(words), {}
    if chosen.one:
        backbone, way = chosen.one[0], chosen.one[4]
        print(json.dumps(one(backbone, *map(int, chosen.one[1:4]), way)))
        return {}
    print(f"{'':26}{'ms, returns':>13}{'ms, keeps':>11}{'ratio':>8}{'faults, returns':>17}{'keeps':>8}")
    for backbone, side in chosen.models:
        told: dict[str, list[dict[str, list[float]]]] = {RETURNS: [], KEEPS: []}
        for _ in range(chosen.processes):
            for way, runs in told.items():
                given = [backbone, str(side), str(chosen.batch), str(chosen.rounds), way]
                command = [sys.executable, "-m", "benchmarks.memory", "--one", *given]
                done = subprocess.run(command, check=True, cwd=ROOT, text=True, stdout=subprocess.PIPE)
                runs.append(json.loads(done.stdout))
        for kind in told[KEEPS][0]:
            seconds, faults = (
                {way: statistics.median(run[kind][place] for run in runs) for way, runs in told.items()}
                for place in range(2)
            )
            name = f"{backbone}, {side} px, {kind}"
            ratios[f"{name}, keeps / returns"] = ratio = seconds[KEEPS] / seconds[RETURNS]
            times = f"{seconds[RETURNS] * 1e3:13.1f}{seconds[KEEPS] * 1e3:11.1f}{ratio:8.2f}"
            print(f"{name:26}{times}{faults[RETURNS]:17,.0f}{faults[KEEPS]:8,.0f}", flush=True)
    return ratios


if __name__ == "__main__":
    main()
