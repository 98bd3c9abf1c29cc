"""The images of a dataset, prepared by whoever needs them first."""

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
