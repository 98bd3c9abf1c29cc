"""Train one model of a recipe: in this process, in several of this machine, or under torchrun on several machines.

    python -m dml train glyphs triplet robust --seed 0
    torchrun --nproc-per-node 2 -m dml train glyphs triplet robust --seed 0

The model is the pipeline's own: weights, settings and history go where notebooks 02 and 03 put them, and a training
that was killed continues. Missing images are prepared first. With --changes all goes below scratch/, unless --workspace
says otherwise.
"""

import argparse
import sys

from dml.common.processes import from_leader, joined
from dml.pipeline.preparing import prepare_missing
from dml.pipeline.stages.train import train
from dml.pipeline.tuning import as_settings


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dml train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", help="a recipe of params.yaml")
    parser.add_argument("loss")
    parser.add_argument("defense")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workspace", help="below the project root, where results go; . or, with --changes, scratch")
    parser.add_argument("--changes", default="{}", help="settings to replace: '{recipes.glyphs.schedule.epochs: 2}'")
    chosen = parser.parse_args(arguments)
    try:
        changes = as_settings(chosen.changes)
        workspace = chosen.workspace or ("scratch" if changes else ".")  # trials leave the pipeline's own models alone
        with joined():
            from_leader(lambda: prepare_missing(chosen.dataset, workspace, changes))
            train(chosen.dataset, chosen.loss, chosen.defense, chosen.seed, workspace=workspace, changes=changes)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
