"""Chapter 5: everything in results/, from the record of each run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dml.common.files import ROOT
from dml.config.load import load
from dml.config.run import Params
from dml.data import base
from dml.evaluation.examples import Examples
from dml.pipeline import paths
from dml.pipeline.digest import data_settings, expected
from dml.pipeline.stored import find_made_with
from dml.reporting import pages, records, tables
from dml.reporting.draw import draw_examples, draw_records


@dataclass(frozen=True)
class Results:
    """What results/ is made from.

    Attributes:
        params: the settings now.
        current: records that these settings and this code would make again.
        stale: the others, which are listed and enter no table or figure.
        workspace: whose prepared images and examples are shown, before the pipeline's.
        folder: that is written to.
    """

    params: Params
    current: list[records.Record]
    stale: list[records.Stale]
    workspace: str
    folder: Path

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets that have current records."""
        return sorted({record["dataset"] for record in self.current})


def read(*, workspace: str = "scratch", changes: Mapping[str, Any] | None = None) -> Results:
    """Read the record of every run, of this machine and of others, and write metrics.csv.

    Args:
        workspace: below the project root, where results go; its records replace the pipeline's of the same run.
        changes: settings to replace, by dotted key.

    Raises:
        ParamsError: a setting is wrong.
        ValueError: a file is no record.
    """
    params = load(changes)
    found = records.read(ROOT / paths.RECORDS, paths.output(workspace, paths.RECORDS))
    current, stale = records.split_stale(found, expected(params, map(records.run_key, found)))
    folder = paths.output(workspace, paths.RECORDS).parent
    metrics = tables.metrics(current)
    tables.write_metrics(metrics, folder / "metrics.csv")
    print(f"{len(current)} runs, {len(metrics)} rows; {len(stale)} stale runs left out")
    return Results(params, current, stale, workspace, folder)


def draw(results: Results, dataset: str) -> list[tuple[str, str]]:
    """Draw every figure that the records of a dataset give.

    Returns:
        (file below results/, caption) of each.
    """
    return draw_records(results.current, dataset, results.params.figures, results.folder)


def draw_searches(results: Results, dataset: str) -> list[tuple[str, str]]:
    """Draw fooled searches and maps of a dataset's embeddings.

    Returns:
        (file below results/, caption) of each; nothing where the recipe does not allow images in results/, or where the
        prepared images or the examples are not on this machine.
    """
    params, data = results.params, results.params.recipe(dataset).data
    if not data.show_images:
        return []
    try:
        place = find_made_with(results.workspace, paths.data_dir(dataset), data_settings(data), "01_data")
    except FileNotFoundError:
        return []
    shown = _examples(results, dataset)
    return draw_examples(shown, base.load(place).test, dataset, params.figures, results.folder)


def _examples(results: Results, dataset: str) -> dict[str, Examples]:
    """Defence -> examples, of the first seed's models with the loss that images are shown of; not of stale runs."""
    figures, run = results.params.figures, results.params.run
    current, found = {records.run_key(record) for record in results.current}, {}
    for defense in (figures.baseline, figures.paper):
        name = paths.run_name(figures.loss, defense, run.seeds[0])
        files = paths.candidates(results.workspace, paths.attack_dir(dataset, name, figures.suite) / "examples.npz")
        if files and (dataset, figures.loss, defense, figures.suite) in current:
            found[defense] = Examples.read(files[0])
    return found


def write_pages(results: Results, drawn: list[tuple[str, str]]) -> list[Path]:
    """Write results/README.md, a page per dataset and provenance.json.

    Args:
        results: what they are made from.
        drawn: figures of this run; those of earlier runs stay and say so.

    Returns:
        The pages, README.md first.
    """
    origins = {name: recipe.data.origin for name, recipe in results.params.recipes.items()}
    files = [file for file, _ in drawn]
    return pages.write(results.folder, results.current, results.stale, results.params.figures, origins, files)
