"""The images of a dataset, prepared by whoever needs them first.

    python -m dml prepare cub200

prepares them without training anything: `python -m dml evaluate artifacts/data/cub200 --model ...` then attacks any
model on the test classes.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dml.common.files import ROOT
from dml.config.build.source import source
from dml.config.load import load
from dml.config.schema import Data
from dml.pipeline import paths
from dml.pipeline.digest import data_settings
from dml.pipeline.locks import alone
from dml.pipeline.stages.prepare import prepare
from dml.pipeline.stored import find_made_with

TORCHVISION = "torchvision"  # the source that downloads what is missing


def prepare_missing(dataset: str, workspace: str, changes: Mapping[str, Any]) -> None:
    """Prepare the images of a dataset unless they are there with these settings; one process does, others wait.

    Where the raw images changed since, they are prepared again. Models and records of the old images stay as they are.

    Raises:
        ParamsError: a setting is wrong.
        DatasetError: the raw images are missing or cannot be read.
    """
    data = load(changes).recipe(dataset).data
    with alone(paths.checkpoint_dir(workspace) / f"{dataset}.lock"):
        try:
            found = find_made_with(workspace, paths.data_dir(dataset), data_settings(data), "01_data")
        except FileNotFoundError:
            found = None
        if found is not None and changed(data, found):
            models = paths.output(workspace, paths.model_dir(dataset, ""))
            records = paths.output(workspace, f"{paths.RECORDS}/{dataset}")
            told = f"remove what was made of the old images: {models}, {records}"
            print(f"{data.path} has changed and is prepared again; {told}")
            found = None
        if found is None:
            prepare(dataset, workspace=workspace, changes=changes)


def changed(data: Data, prepared: Path) -> bool:
    """Return whether raw images, if they are still there, are others than those that were prepared.

    They are read again only if a file or folder among them is newer than what was made of them. Those of torchvision
    are not, since what is missing would be downloaded.

    Args:
        data: of the recipe.
        prepared: folder of the prepared images.
    """
    raw, about = ROOT / data.path, prepared / "about.json"
    if data.source == TORCHVISION or not raw.exists() or not about.exists():
        return False
    if _newest(raw) <= about.stat().st_mtime:
        return False
    try:
        digest = source(data).digest
    except ValueError as error:  # such as an archive that was removed once the images were prepared
        print(f"{data.path} cannot be read, so the prepared images are used as they are ({error})")
        return False
    same = digest == json.loads(about.read_text(encoding="utf-8"))["source_sha256"]
    if same and os.access(about, os.W_OK):
        os.utime(about)  # so that the next call need not read them
    return not same


def _newest(raw: Path) -> float:
    """The time of the last change of a file, or of any file or folder in a folder."""
    places = [raw]
    for folder, folders, files in os.walk(raw, followlinks=True):
        places += [Path(folder, name) for name in (*folders, *files)]
    return max(place.lstat().st_mtime if place.is_symlink() else place.stat().st_mtime for place in places)


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m dml prepare", description=summary)
    parser.add_argument("datasets", nargs="+", metavar="DATASET", help="recipes of params.yaml")
    chosen = parser.parse_args(arguments)
    try:
        for name in chosen.datasets:
            prepare_missing(name, ".", {})
            print(f"{paths.data_dir(name)} is there")
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
