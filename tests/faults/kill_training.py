"""Kill a training at random moments with SIGKILL, let it go on, and compare it with one that was never killed.

    python tests/faults/kill_training.py --kills 20

Every bit of the weights, the history and the printed lines must be the same. Prints one line per kill.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from dml.common.files import write_json
from dml.data.base import Split
from dml.defenses.hardness import Hardness
from dml.losses.triplet import Triplet
from dml.models.embedder import build
from dml.models.weights import save
from dml.training.checkpoint import Checkpoint
from dml.training.loop import fit
from dml.training.schedule import Schedule
from dml.training.selection import validator

BATCH = {"batches": 12, "classes": 5, "images_per_class": 3, "averaging": 0.9, "shift": 2, "flip": True}
READY = "ready"


def train(folder: Path, epochs: int) -> None:
    """Train from the checkpoint in a folder, or from the start, and write weights and history beside it."""
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    patterns = draw.integers(40, 215, (6, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(patterns, 6, axis=0) + draw.normal(0, 40, (36, 16, 16, 3))
    split = Split(np.clip(images, 0, 255).astype(np.uint8), np.repeat(np.arange(6), 6), list("abcdef"))
    model, loss = build("conv4", 8, seed=0, statistics=split.statistics()), Triplet(6, 8, miner="distance_weighted")
    validate = validator(split, queries=12, eps=0.03, steps=2, seed=0)
    lines: list[str] = []
    say = {"report": lines.append, "timing": lambda line: print(line, flush=True)}
    checkpoint = Checkpoint(folder / "state.pt", "killed")
    print(READY, flush=True)
    history = fit(
        model,
        split,
        loss,
        Hardness(steps=2),
        Schedule(epochs=epochs, **BATCH),
        seed=0,
        validate=validate,
        checkpoint=checkpoint,
        every=0.02,
        **say,
    )
    save(model, folder / "weights.safetensors")
    told = {"epochs": history.epochs, "chosen": history.chosen, "embedded": history.embedded, "lines": lines}
    write_json(folder / "history.json", told)


def start(folder: Path, epochs: int) -> subprocess.Popen[str]:
    """Start a training in a new process, and return once it trains."""
    words = [sys.executable, __file__, "--train", str(folder), "--epochs", str(epochs)]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline().strip() == READY
    return running


def outcome(folder: Path) -> tuple[bytes, bytes]:
    """Return what a finished training has written."""
    return (folder / "weights.safetensors").read_bytes(), (folder / "history.json").read_bytes()


def compare(kills: int, epochs: int, seed: int) -> dict[str, object]:
    """Train twice, once with this many kills.

    Returns:
        How many came in time, how many of the processes killed had resumed, how many of these within an epoch, and
        whether both trainings ended the same.
    """
    draw, told = random.Random(seed), []
    with tempfile.TemporaryDirectory() as place:
        whole, killed = Path(place) / "whole", Path(place) / "killed"
        running, began = start(whole, epochs), time.perf_counter()
        running.communicate()
        seconds = time.perf_counter() - began
        for number in range(1, kills + 1):
            running = start(killed, epochs)
            time.sleep(draw.uniform(0, 1.5 * seconds / kills))
            running.kill()
            said, _ = running.communicate()
            if running.returncode:
                told.append(said.splitlines()[0] if "resumed" in said else "not said that it resumed")
                print(f"kill {number}, of a process that had {told[-1]}", flush=True)
        start(killed, epochs).communicate()
        resumed = [line for line in told if "resumed" in line]
        return {
            "kills": len(told),
            "resumed": len(resumed),
            "within_an_epoch": sum("step" in line for line in resumed),
            "same": outcome(whole) == outcome(killed),
        }


def main() -> int:
    """Run the command line and return its exit status: 1 if the trainings differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=40, help="of the training: so long that it outlives the kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.train:
        train(chosen.train, chosen.epochs)
        return 0
    found = compare(chosen.kills, chosen.epochs, chosen.seed)
    print(json.dumps(found))
    return int(not found["same"])


if __name__ == "__main__":
    sys.exit(main())
