"""Kill an attack and its gates at random moments with SIGKILL, and compare them with ones that were never killed.

    python tests/faults/kill_evaluation.py --kills 20

Every bit of the outcomes, the gates and the printed lines must be the same. Prints one line per kill.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from killing import compare

from dml.data.base import Split
from dml.evaluation import engine, gates
from dml.evaluation.suites.attacks import AttackSuite
from dml.models.embedder import build
from dml.retrieval.index import Search

ATTACKS = {"margin": {"steps": 12}, "square": {"tries": 10}}
engine.CHUNK = 3  # queries attacked at a time: few, so that much can be kept


def work(folder: Path) -> dict[str, bytes]:
    """Attack a small model and run the gates, keeping what is finished in a folder; return all that was found."""
    draw = np.random.default_rng(1)
    patterns = draw.integers(90, 165, (6, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(patterns, 6, axis=0) + draw.normal(0, 10, (36, 16, 16, 3))
    split = Split(np.clip(images, 0, 255).astype(np.uint8), np.repeat(np.arange(6), 6), list("abcdef"))
    search = Search.over(build("conv4", 16, seed=0, statistics=split.statistics()).eval(), split)
    suite = AttackSuite(queries=36, eps=(0.02, 0.06), attacks=ATTACKS, claims=True, gate_tries=20)
    lines: list[str] = []
    found = suite.evaluate(search, np.arange(36), seed=0, folder=folder / "queries", report=lines.append)
    checked = gates.check(
        search, suite, found.outcomes, seed=0, surrogates={}, folder=folder / "gates", report=lines.append
    )
    outcomes = {name: found.outcomes[name].to_numpy() for name in found.outcomes}
    made = {name: json.dumps(values.tolist()).encode() for name, values in outcomes.items()}
    return made | {"gates": checked.to_json(double_precision=15).encode(), "lines": "\n".join(lines).encode()}


def main() -> int:
    """Run the command line and return its exit status: 1 if the evaluations differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    return compare(work, chosen.kills, chosen.seed)


if __name__ == "__main__":
    sys.exit(main())
