"""The images of a dataset, prepared by whoever needs them first.

    python -m dml prepare cub200

prepares them without training anything: `python -m dml evaluate artifacts/data/cub200 --model ...` then attacks any
model on the test classes.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from dml.config.load import load
from dml.pipeline import paths
from dml.pipeline.digest import data_settings
from dml.pipeline.locks import alone
from dml.pipeline.stages.prepare import prepare
from dml.pipeline.stored import find_made_with


def prepare_missing(dataset: str, workspace: str, changes: Mapping[str, Any]) -> None:
    """Prepare the images of a dataset unless they are there with these settings; one process does, others wait.

    Raises:
        ParamsError: a setting is wrong.
        DatasetError: the raw images are missing or cannot be read.
    """
    settings = data_settings(load(changes).recipe(dataset).data)
    with alone(paths.checkpoint_dir(workspace) / f"{dataset}.lock"):
        try:
            find_made_with(workspace, paths.data_dir(dataset), settings, "01_data")
        except FileNotFoundError:
            prepare(dataset, workspace=workspace, changes=changes)


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
