"""Train and attack a run again, and say what came out, for a comparison (:mod:`dml.pipeline.carry`).

    python -P dml/pipeline/again.py '{"dataset": "glyphs", "loss": "triplet", …, "changes": {…}}' FILE

As a program it runs with the code that PYTHONPATH leads to, which may be that of an earlier revision. It writes to the
file what came out, and beside it the digests that this code gives a record of the run with the settings of params.yaml.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dml.config.load import load
from dml.evaluation import gates
from dml.evaluation.outcomes import map_r_left, survival
from dml.models import weights
from dml.pipeline.digest import expected
from dml.pipeline.stages import attack, prepare
from dml.pipeline.stages.train import train
from dml.reporting.records import LOWERED
from dml.reporting.spelling import CONTROL

SCRATCH = "scratch/carry"


def again(
    dataset: str, loss: str, defense: str, seed: int, suite: str, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Train and attack a run, and return what :data:`dml.pipeline.carry.COMPARED` names, as a record would hold it.

    Args:
        dataset, loss, defense, seed, suite: which run; a control has loss ``none``.
        changes: settings to replace, by dotted key.

    Raises:
        ParamsError, FileNotFoundError: see the stages.
    """
    if loss != CONTROL:
        train(dataset, loss, defense, seed, workspace=SCRATCH, changes=changes)
    target = attack.open_target(dataset, loss, defense, seed, suite, workspace=SCRATCH, changes=changes)
    found = attack.run_suite(target)
    outcomes = found.evaluation.outcomes
    return {
        "weights": weights.digest(target.search.model),
        "natural": target.natural.to_dict(),
        "embedding": target.embedding,
        "rows": found.summary.astype(object).where(found.summary.notna(), None).to_dict("records"),
        "survival": survival(outcomes),
        "map_r": map_r_left(outcomes, LOWERED),
        "scores": found.evaluation.scores,
        "gates": _gates(target, outcomes).to_dict("records"),
    }


def _gates(target: attack.Target, outcomes: pd.DataFrame) -> pd.DataFrame:
    """All gates but those with images of other models; an empty table for a suite that no claim rests on."""
    if not target.suite.claims:
        return pd.DataFrame()
    return gates.check(target.search, target.suite, outcomes, seed=target.seed, surrogates={})


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    prepare.prepare(asked["dataset"], workspace=SCRATCH, changes=asked["changes"])
    key = tuple(asked[name] for name in ("dataset", "loss", "defense", "suite"))
    found = again(**asked) | {"digests": expected(load(), [key])[key]}
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")
