"""Chapter 1: prepare the images of a dataset."""

from collections.abc import Mapping
from typing import Any

from dml.common.files import write_json
from dml.config.build.source import source
from dml.config.load import load
from dml.config.run import Params
from dml.config.schema import ParamsError
from dml.data import base
from dml.data.prepare import prepare as prepare_images
from dml.pipeline import paths
from dml.pipeline.digest import data_settings
from dml.pipeline.stored import SETTINGS


def prepare(dataset: str, *, workspace: str = "scratch", changes: Mapping[str, Any] | None = None) -> base.Dataset:
    """Decode and resize the images of a dataset once, and open the result.

    Args:
        dataset: a recipe of params.yaml.
        workspace: below the project root, where results go; ``"."`` is the pipeline's.
        changes: settings to replace, by dotted key.

    Raises:
        ParamsError: a setting is wrong, or a suite of ``run`` or of a study on the dataset wants more queries than
            there are.
        DatasetError: an image is missing or damaged, or the classes do not fill three splits.
    """
    params = load(changes)
    settings = params.recipe(dataset).data
    folder = paths.output(workspace, paths.data_dir(dataset))
    prepare_images(
        source(settings),
        folder,
        name=dataset,
        size=settings.size,
        height=settings.height,
        crop=settings.crop,
        train_fraction=settings.train_fraction,
        validation_fraction=settings.validation_fraction,
    )
    write_json(folder / SETTINGS, {"settings": data_settings(settings)})
    data = base.load(folder)
    check_queries(params, dataset, len(data.test if data.queries is None else data.queries))
    return data


def check_queries(params: Params, dataset: str, available: int) -> None:
    """Raise ParamsError if a suite of ``run``, or of a study on the dataset, attacks more queries than there are."""
    studied = (block.suite for block in params.study.values() if dataset in block.datasets)
    for name in dict.fromkeys([*params.run.suites, *studied]):
        wanted = params.suites[name]["queries"]
        if wanted > available:
            known = f"{dataset} has {available:,} test images"
            raise ParamsError(f"suites.{name}.queries is {wanted:,}; {known}, so it must be at most that")
