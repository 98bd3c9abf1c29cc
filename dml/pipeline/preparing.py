"""The images of a dataset, prepared by whoever needs them first.

    python -m dml prepare cub200

prepares them without training anything: `python -m dml evaluate artifacts/data/cub200 --model ...` then attacks any
model on the test classes.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dml.common.files import ROOT
from dml.config.build.source import source
from dml.config.load import load
from dml.config.schema import Data
from dml.data.base import DatasetError
from dml.pipeline import paths
from dml.pipeline.digest import data_settings
from dml.pipeline.locks import alone
from dml.pipeline.stages.prepare import prepare
from dml.pipeline.stored import find_made_with


def prepare_missing(dataset: str, workspace: str, changes: Mapping[str, Any]) -> None:
    """Prepare the images of a dataset unless they are there with these settings; one process does, others wait.

    Where the raw images changed since, they are prepared again. Models and records do not know of that.

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
            run = f"models in artifacts/models/{dataset} and records in results/runs/{dataset}"
            print(f"{data.path} has changed and is prepared again; {run} are of the old images: remove them")
            found = None
        if found is None:
            prepare(dataset, workspace=workspace, changes=changes)


def changed(data: Data, prepared: Path) -> bool:
    """Return whether raw images, if they are still there, are others than those that were prepared.

    They are read again only if a file or folder among them is newer than what was made of them.

    Args:
        data: of the recipe.
        prepared: folder of the prepared images.
    """
    raw, about = ROOT / data.path, prepared / "about.json"
    if not raw.exists() or not about.exists():
        return False
    newest = max(place.stat().st_mtime for place in (raw, *raw.rglob("*")))
    if newest <= about.stat().st_mtime:
        return False
    try:
        digest = source(data).digest
    except DatasetError:  # such as an archive that was removed once the images were prepared
        return False
    return digest != json.loads(about.read_text(encoding="utf-8"))["source_sha256"]


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
