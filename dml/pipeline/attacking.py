"""Attack one model with one suite: in this process, in several of this machine, or under torchrun on several machines.

    python -m dml attack glyphs triplet robust quick --seed 0
    torchrun --nproc-per-node 2 -m dml attack glyphs triplet robust quick --seed 0

It does what notebook 04 does, without figures: the record and the outcomes go where the pipeline keeps its own, and an
evaluation that was killed continues. With --changes they go below scratch/, unless --workspace says otherwise.
"""

import argparse
import sys

from dml.common.processes import joined, leads
from dml.pipeline import paths
from dml.pipeline.recording import keep
from dml.pipeline.stages import attack
from dml.pipeline.study import Model, trainings
from dml.pipeline.tuning import as_settings


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dml attack", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", help="a recipe of params.yaml")
    parser.add_argument("loss", help="or none, for a control")
    parser.add_argument("defense", help="or a control")
    parser.add_argument("suite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workspace", help="below the project root, where results go; . or, with --changes, scratch")
    parser.add_argument("--changes", default="{}", help="settings to replace: '{suites.quick.queries: 50}'")
    chosen = parser.parse_args(arguments)
    try:
        changes = as_settings(chosen.changes)
        workspace = chosen.workspace or ("scratch" if changes else ".")  # trials leave the pipeline's records alone
        with joined():
            names = (chosen.dataset, chosen.loss, chosen.defense, chosen.seed, chosen.suite)
            target = attack.open_target(*names, workspace=workspace, changes=changes)
            check_surrogates(target)
            found = attack.run_suite(target)
            checked = attack.run_gates(target, found)
            if leads():
                keep(target, found, checked, attack.look(target))
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def check_surrogates(target: attack.Target) -> None:
    """Ask for the models that the gates need before the attack, which may take hours.

    Raises:
        FileNotFoundError: there is none of them; the sentence says how to train them.
    """
    own = Model(target.dataset, target.loss, target.defense, target.seed)
    missing = [
        f"`python -m dml train {model.dataset} {model.loss} {model.defense} --seed {model.seed}`"
        for model in trainings(target.params, [own] if target.suite.claims else [])
        if model != own
        and not paths.candidates(target.workspace, paths.model_dir(model.dataset, paths.run_name(*model[1:])))
    ]
    if missing:
        raise FileNotFoundError(
            f"gates try adversarial images of other models on this one; train these first: {', '.join(missing)}"
        )
