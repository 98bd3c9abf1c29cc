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

SCHEDULE = Schedule(epochs=3, batches=12, classes=5, images_per_class=3, averaging=0.9, shift=2, flip=True)
READY = "ready"


def train(folder: Path) -> None:
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
        SCHEDULE,
        seed=0,
        validate=validate,
        checkpoint=checkpoint,
        every=0.02,
        **say,
    )
    save(model, folder / "weights.safetensors")
    told = {"epochs": history.epochs, "chosen": history.chosen, "embedded": history.embedded, "lines": lines}
    write_json(folder / "history.json", told)


def start(folder: Path) -> subprocess.Popen[str]:
    """Start a training in a process of its own, and return once it trains."""
    running = subprocess.Popen([sys.executable, __file__, "--train", str(folder)], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline().strip() == READY
    return running


def outcome(folder: Path) -> tuple[bytes, bytes]:
    """Return what a finished training has written."""
    return (folder / "weights.safetensors").read_bytes(), (folder / "history.json").read_bytes()


def compare(kills: int, seed: int) -> bool:
    """Train twice, once with this many kills, and return whether both ended the same."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        whole, killed = Path(place) / "whole", Path(place) / "killed"
        began = time.perf_counter()
        start(whole).communicate()
        seconds = time.perf_counter() - began
        for number in range(kills):
            running = start(killed)
            time.sleep(draw.uniform(0, seconds / (kills + 1)))
            running.kill()
            said, _ = running.communicate()
            if running.returncode == 0:
                print(f"kill {number + 1}: too late, it had finished", flush=True)
                continue
            place_now = said.splitlines()[0] if said else "from the start"
            print(f"kill {number + 1}: had {place_now}", flush=True)
        start(killed).communicate()
        return outcome(whole) == outcome(killed)


def main() -> int:
    """Run the command line and return its exit status: 1 if the trainings differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.train:
        train(chosen.train)
        return 0
    same = compare(chosen.kills, chosen.seed)
    print(json.dumps({"kills": chosen.kills, "same": same}))
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
