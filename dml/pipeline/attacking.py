"""Attack one model with one suite: in this process, in several of this machine, or under torchrun on several machines.

    python -m dml attack glyphs triplet robust quick --seed 0
    torchrun --nproc-per-node 2 -m dml attack glyphs triplet robust quick --seed 0

It does what notebook 04 does, without pictures: the record and the outcomes go where the pipeline keeps its own, and an
evaluation that was killed continues.
"""

import argparse
import sys

from dml.common.processes import joined, leads
from dml.pipeline.recording import keep
from dml.pipeline.stages import attack
from dml.pipeline.tuning import as_settings


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dml attack", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", help="a recipe of params.yaml")
    parser.add_argument("loss", help="or none, for a control")
    parser.add_argument("defense", help="or a control")
    parser.add_argument("suite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workspace", default=".", help="below the project root, where results go; the pipeline's: .")
    parser.add_argument("--changes", default="{}", help="settings to replace: '{suites.quick.queries: 50}'")
    chosen = parser.parse_args(arguments)
    try:
        with joined():
            names = (chosen.dataset, chosen.loss, chosen.defense, chosen.seed, chosen.suite)
            target = attack.open_target(*names, workspace=chosen.workspace, changes=as_settings(chosen.changes))
            found = attack.run_suite(target)
            checked = attack.run_gates(target, found)
            if leads():
                keep(target, found, checked, attack.look(target))
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
