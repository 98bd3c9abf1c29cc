"""Carry records over a change of code that changes no result, after some of them were made again, bit for bit.

    OMP_NUM_THREADS=1 python -m dml carry glyphs_long study triplet-best-0 triplet-standard-0 none-pixels_16-0

A record is stale as soon as the code that made it is another (:mod:`dml.pipeline.digest`), also where the change only
moved or added something. Training everything again to show that takes hours or days. This trains and attacks the runs
that are named, and compares weights, natural scores, every row, the outcome of every query and every gate with what is
recorded, but for gates that want the images of other models. If all are equal, the stale records of the same dataset
and suite get today's digests, and say which runs were checked; so do the models that they were made from, where these
are on this machine. A record stays stale if a setting of it has changed. Name runs that reach all the code that was
changed.

Another kind of CPU trains other weights from the same seed. There, name a revision of git from before the change: each
run is made twice, by that code and by today's, and these two are compared. Then it may also be made shorter:

    python -m dml carry glyphs_long study triplet-best-0 none-pixels_16-0 --beside HEAD \\
        --changes '{recipes.glyphs_long.schedule.epochs: 1, suites.study.queries: 40}'
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from dml.common.files import ROOT, write_json
from dml.config.load import load
from dml.config.run import Params
from dml.config.schema import Data, Model, Settings, Validation
from dml.models import weights
from dml.pipeline import paths
from dml.pipeline.again import again
from dml.pipeline.digest import decisive, expected, training_settings
from dml.pipeline.stored import SETTINGS, differences, open_folder
from dml.pipeline.tuning import as_settings, as_text
from dml.reporting.records import Record, read, run_key, split_stale
from dml.reporting.spelling import CONTROL
from dml.training.schedule import Schedule

RUN = ("dataset", "loss", "defense", "seed", "suite")
COMPARED = ("weights", "natural", "embedding", "rows", "survival", "map_r", "scores", "gates")
TRANSFER = "that fool"  # in the name of a gate that wants the images of other models, which need not be there


def carry(
    dataset: str, suite: str, runs: Sequence[str], beside: str | None = None, changes: Settings | None = None
) -> list[str]:
    """Make some stale records again and, if they come out the same, give the stale ones today's digests.

    Args:
        dataset, suite: of the records.
        runs: names of those to make again, ``loss-defense-seed``.
        beside: a revision of git whose code makes them too, for a comparison on this machine; None compares with what
            is recorded.
        changes: settings to replace in both of the two, by dotted key.

    Returns:
        One line for each stale record: carried, or why it was not.

    Raises:
        ParamsError, FileNotFoundError: see the stages.
        ValueError: a run is not among the stale records, or came out differently, or the revision has other code than
            the records, or there are changes without a revision; nothing is written.
    """
    if changes and beside is None:
        raise ValueError("changes need a revision to compare with: what is recorded was made without them")
    params, commit = load(), None if beside is None else commit_of(beside)
    folder = ROOT / paths.RECORDS / dataset
    wanted = expected(params, keys := [run_key(record) for record in read(folder)])
    stale = {
        paths.run_name(old.record["loss"], old.record["defense"], old.record["seed"]): old.record
        for old in split_stale([record for record in read(folder) if record["suite"] == suite], wanted)[1]
    }
    if not keys or not stale:
        raise ValueError(f"{folder.relative_to(ROOT)} has no stale record of suite {suite!r}")
    seen = {stale[run]["digests"]["evaluation"] for run in runs if run in stale}
    for run in runs:
        if run not in stale:
            raise ValueError(f"{run!r} is no stale record of {dataset} under {suite!r}; these are: {', '.join(stale)}")
        asked = {name: stale[run][name] for name in RUN}
        before, now = (stale[run], again(**asked)) if commit is None else by_both(asked, commit, changes)
        if before["digests"] != stale[run]["digests"]:
            raise ValueError(f"the code of {commit} is not what the record of {run} was made with")
        if differ := compare(before, now):
            raise ValueError(f"{run} came out differently, so nothing is carried over: {differ}")
        print(f"{run}: the same weights, rows and outcomes", flush=True)
    how = "" if commit is None else f" beside {commit}" + (f" with {as_text(changes)}" if changes else "")
    lines = []
    for run, record in stale.items():
        changed = changed_settings(params, record)
        if changed or wanted[run_key(record)] is None:
            lines.append(f"{run} stays stale: {'; '.join(changed) or 'params.yaml has no such run'}")
            continue
        if record["digests"]["evaluation"] not in seen:
            lines.append(f"{run} stays stale: older code made it than {', '.join(runs)}; name it, too")
            continue
        settings = today(params, record)
        model = carry_model(record, wanted[run_key(record)]["training"], settings)
        record.pop("machine")
        checked = [f"{name}{how}" for name in runs]
        record |= {"digests": wanted[run_key(record)], "settings": settings, "carried": checked}
        write_json(ROOT / paths.record_file(dataset, run, suite), record)
        lines.append(f"{run}: carried over{', with its model' if model else ''}")
    return lines


def commit_of(revision: str) -> str:
    """Return the short hash of a revision of git.

    Raises:
        ValueError: git has none of this name.
    """
    words = ["git", "rev-parse", "--verify", "--short", f"{revision}^{{commit}}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"git has no revision {revision!r}: {done.stderr.strip()}")
    return done.stdout.strip()


def by_both(asked: Settings, commit: str, changes: Settings | None) -> list[dict[str, Any]]:
    """Make a run by the code of a commit and by today's, and return what both found.

    Args:
        asked: dataset, loss, defense, seed and suite.
        commit: of git.
        changes: settings to replace in both, by dotted key.

    Raises:
        ValueError: one of the two failed.
    """
    with tempfile.TemporaryDirectory() as place:
        earlier, found = Path(place, "earlier"), Path(place, "found.json")
        unpack(commit, earlier)
        return [_by(root, asked | {"changes": changes}, found) for root in (earlier, ROOT)]


def _by(root: Path, asked: Settings, found: Path) -> dict[str, Any]:
    """Make a run in another process, by the code below ``root``."""
    words = [sys.executable, "-P", str(ROOT / "dml" / "pipeline" / "again.py"), json.dumps(asked), str(found)]
    found.unlink(missing_ok=True)
    done = subprocess.run(words, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    if done.returncode:
        raise ValueError(f"the code in {root} ended with status {done.returncode}; see above")
    return json.loads(found.read_text(encoding="utf-8"))


def unpack(commit: str, folder: Path) -> None:
    """Put the files of a commit into a new folder, and links to images that git does not hold."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    for images in (ROOT / "data").iterdir():
        if not (folder / "data" / images.name).exists():
            (folder / "data" / images.name).symlink_to(images)


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


def compare(record: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    """Say which part of a record, or of what was made by other code, was made differently; empty if none was."""
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
    parser.add_argument("--beside", metavar="REVISION", help="of git, to compare with instead of the records")
    parser.add_argument("--changes", default="{}", help="YAML, settings of both: '{suites.study.queries: 40}'")
    chosen = parser.parse_args(arguments)
    try:
        changes = as_settings(chosen.changes)
        print("\n".join(carry(chosen.dataset, chosen.suite, chosen.runs, chosen.beside, changes)))
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
