"""Carry records over a change of code that changes no result, after some of them were made again, bit for bit.

    OMP_NUM_THREADS=1 python -m dml carry glyphs_long study triplet-best-0 triplet-standard-0 none-pixels_16-0

A record is stale as soon as the code that made it is another (:mod:`dml.pipeline.digest`), also where the change only
moved or added something. Training everything again to show that takes hours or days. This trains and attacks the runs
that are named, and compares weights, natural scores, every row, the outcome of every query and every gate with what is
recorded, but for gates that want the images of other models. If all are equal, the stale records of the same dataset
and suite get today's digests, and say which runs were checked; so do the models that they were made from, where these
are on this machine. A record stays stale if a setting of it has changed. Name runs that reach all the code that was
changed.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

import pandas as pd

from dml.common.files import ROOT, write_json
from dml.config.load import load
from dml.config.run import Params
from dml.config.schema import Data, Model, Settings, Validation
from dml.evaluation import gates
from dml.evaluation.outcomes import map_r_left, survival
from dml.models import weights
from dml.pipeline import paths
from dml.pipeline.digest import decisive, expected, training_settings
from dml.pipeline.stages import attack
from dml.pipeline.stages.train import train
from dml.pipeline.stored import SETTINGS, differences, open_folder
from dml.reporting.records import LOWERED, Record, read, run_key, split_stale
from dml.reporting.spelling import CONTROL
from dml.training.schedule import Schedule

SCRATCH = "scratch/carry"
COMPARED = ("weights", "natural", "embedding", "rows", "survival", "map_r", "scores", "gates")
TRANSFER = "that fool"  # in the name of a gate that wants the images of other models, which need not be there


def carry(dataset: str, suite: str, runs: Sequence[str]) -> list[str]:
    """Make some stale records again and, if they come out the same, give the stale ones today's digests.

    Args:
        dataset, suite: of the records.
        runs: names of those to make again, ``loss-defense-seed``.

    Returns:
        One line for each stale record: carried, or why it was not.

    Raises:
        ParamsError, FileNotFoundError: see the stages.
        ValueError: a run is not among the stale records, or came out differently; nothing is written.
    """
    params = load()
    folder = ROOT / paths.RECORDS / dataset
    wanted = expected(params, keys := [run_key(record) for record in read(folder)])
    stale = {
        paths.run_name(old.record["loss"], old.record["defense"], old.record["seed"]): old.record
        for old in split_stale([record for record in read(folder) if record["suite"] == suite], wanted)[1]
    }
    if not keys or not stale:
        raise ValueError(f"{folder.relative_to(ROOT)} has no stale record of suite {suite!r}")
    for run in runs:
        if run not in stale:
            raise ValueError(f"{run!r} is no stale record of {dataset} under {suite!r}; these are: {', '.join(stale)}")
        if differ := compare(stale[run], again(stale[run])):
            raise ValueError(f"{run} came out differently, so nothing is carried over: {differ}")
        print(f"{run}: the same weights, rows and outcomes", flush=True)
    lines = []
    for run, record in stale.items():
        changed = changed_settings(params, record)
        if changed or wanted[run_key(record)] is None:
            lines.append(f"{run} stays stale: {'; '.join(changed) or 'params.yaml has no such run'}")
            continue
        settings = today(params, record)
        model = carry_model(record, wanted[run_key(record)]["training"], settings)
        record.pop("machine")
        record |= {"digests": wanted[run_key(record)], "settings": settings, "carried": list(runs)}
        write_json(ROOT / paths.record_file(dataset, run, suite), record)
        lines.append(f"{run}: carried over{', with its model' if model else ''}")
    return lines


def again(record: Record) -> dict[str, Any]:
    """Train and attack the run of a record with today's code, and return what :data:`COMPARED` names."""
    dataset, loss, defense, seed, suite = (record[name] for name in ("dataset", "loss", "defense", "seed", "suite"))
    if loss != CONTROL:
        train(dataset, loss, defense, seed, workspace=SCRATCH)
    target = attack.open_target(dataset, loss, defense, seed, suite, workspace=SCRATCH)
    found = attack.run_suite(target)
    outcomes = found.evaluation.outcomes
    checked = _gates(target, outcomes)
    return {
        "weights": weights.digest(target.search.model),
        "natural": target.natural.to_dict(),
        "embedding": target.embedding,
        "rows": found.summary.astype(object).where(found.summary.notna(), None).to_dict("records"),
        "survival": survival(outcomes),
        "map_r": map_r_left(outcomes, LOWERED),
        "scores": found.evaluation.scores,
        "gates": checked.to_dict("records"),
    }


def _gates(target: attack.Target, outcomes: pd.DataFrame) -> pd.DataFrame:
    """All gates but :data:`TRANSFER`; an empty table for a suite that no claim rests on."""
    if not target.suite.claims:
        return pd.DataFrame()
    return gates.check(target.search, target.suite, outcomes, seed=target.seed, surrogates={})


def carry_model(record: Record, digest: str, settings: Settings) -> bool:
    """Give the stored model of a record today's digest and settings too; False if there is none with its weights."""
    folder = ROOT / paths.model_dir(
        record["dataset"], paths.run_name(record["loss"], record["defense"], record["seed"])
    )
    if not (folder / SETTINGS).exists() or weights.digest(open_folder(folder).model) != record["weights"]:
        return False
    training = {name: value for name, value in settings.items() if name != "suite"}
    made_with = {"settings": training, "seed": record["seed"], "digest": digest, "weights": record["weights"]}
    write_json(folder / SETTINGS, made_with)
    return True


def compare(record: Record, made: Mapping[str, Any]) -> str:
    """Say which part of a record was made differently; empty if none was."""
    made, held = json.loads(json.dumps(made)), {"map_r": {}} | record
    held |= {"gates": [gate for gate in record["gates"] if TRANSFER not in gate["gate"]]}
    return ", ".join(f"{name} differ" for name in COMPARED if held[name] != made[name])


def today(params: Params, record: Record) -> Settings:
    """Return the settings that params.yaml has now for a record's run."""
    recipe = params.recipe(record["dataset"])
    if record["loss"] == CONTROL:
        made: Settings = {"data": decisive(recipe.data)}
    else:
        made = training_settings(recipe, record["loss"], record["defense"])
    return json.loads(json.dumps(made | {"suite": params.suites[record["suite"]]}))


def changed_settings(params: Params, record: Record) -> list[str]:
    """Return one phrase per setting that has changed since a record was made.

    A setting that did not exist then counts as unchanged where it has its default.
    """
    if expected(params, [run_key(record)])[run_key(record)] is None:
        return []
    now = today(params, record)
    for name, kind in {"data": Data, "model": Model, "schedule": Schedule, "validation": Validation}.items():
        for field in fields(kind) if name in now else ():
            if field.name not in record["settings"][name] and now[name].get(field.name, MISSING) == _default(field):
                del now[name][field.name]
    return differences(record["settings"], now)


def _default(field: Field) -> Any:
    """Return the default of a field of a dataclass as JSON would give it back, or None if it has none."""
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    return None if default is MISSING else json.loads(json.dumps(default))


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dml carry", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("suite")
    parser.add_argument("runs", nargs="+", metavar="LOSS-DEFENSE-SEED", help="to make again")
    chosen = parser.parse_args(arguments)
    try:
        print("\n".join(carry(chosen.dataset, chosen.suite, chosen.runs)))
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
