"""How much longer a training step takes beside another busy process than alone.

With two threads and one other process on two cores, a fair share is half of the machine, so 2. Threads of OpenMP that
spin while they wait for each other take the other process's time and lose their own. With OMP_WAIT_POLICY=PASSIVE,
which the command line and make set, they sleep. The last column is what that costs a step that has the machine to
itself.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from benchmarks.measure import in_turns, model_and_numbers
from benchmarks.robust_step import work
from dml.common.files import ROOT

MODELS = (("conv4", 32), ("resnet18", 64))  # backbone, side of an image
BATCH, ROUNDS = 100, 9
SLEEPS, SPINS = "sleeping", "spinning"


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep some processes running beside the block, each busy with one core."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def seconds(backbone: str, side: int, batch: int, rounds: int, policy: str) -> float:
    """Return the median seconds of a standard training step in a new process."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if policy == SLEEPS:
        environment["OMP_WAIT_POLICY"] = "PASSIVE"
    words = ["--one", backbone, str(side), str(batch), str(rounds)]
    command = [sys.executable, "-m", "benchmarks.beside", *words]
    told = subprocess.run(command, check=True, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE).stdout
    return json.loads(told)


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Print a line per model and policy; return the ratios of beside to alone."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", type=model_and_numbers, default=MODELS, help="backbone:side")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which the median counts")
    parser.add_argument("--processes", type=int, default=1, help="that are busy beside it")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    chosen, ratios = parser.parse_args(words), {}
    if chosen.one:
        backbone, (side, batch, rounds) = chosen.one[0], map(int, chosen.one[1:])
        step = work(backbone, side, batch, ())["standard"]
        print(json.dumps(in_turns({"standard": step}, rounds)["standard"]))
        return {}
    print(f"{torch.get_num_threads()} threads, {chosen.processes} busy beside them")
    print(f"{'':20}{'threads':>10}{'ms alone':>10}{'ms beside':>11}{'beside / alone':>16}{'alone / spinning':>18}")
    for backbone, side in chosen.models:
        alone = {}
        for policy in (SPINS, SLEEPS):
            given = (backbone, side, chosen.batch, chosen.rounds, policy)
            alone[policy] = seconds(*given)
            with busy(chosen.processes):
                beside = seconds(*given)
            ratio, cost = beside / alone[policy], alone[policy] / alone[SPINS]
            told = f"{backbone}, {side} px"
            row = f"{told:20}{policy:>10}{alone[policy] * 1e3:10.1f}{beside * 1e3:11.1f}{ratio:16.2f}{cost:18.2f}"
            print(row, flush=True)
            ratios[f"{told}, {policy}, beside / alone"] = ratio
    return ratios


if __name__ == "__main__":
    main()
