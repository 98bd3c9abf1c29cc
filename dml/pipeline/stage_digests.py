"""Writes one small file for each stage of the pipeline, which DVC compares.

    python -m dml digests .digests

A file holds the digest that the stage puts beside what it makes, and the code behind it, module by module. For chapter
4 the code that writes records counts, too. Tables and pages depend on which records are current, and therefore on all
code that decides one.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dml.common.files import ROOT, atomic, write_json
from dml.config.load import load
from dml.config.run import Params
from dml.defenses import DEFENSES
from dml.evaluation import CONTROLS
from dml.losses import LOSSES
from dml.losses.miners import MINERS
from dml.models.backbones import BACKBONES
from dml.pipeline import paths
from dml.pipeline.digest import (
    STAGES,
    Code,
    code_of,
    control_digest,
    data_settings,
    digest,
    evaluation_code,
    evaluation_digest,
    expected,
    notebook_digest,
    prepare_code,
    training_code,
    training_digest,
)
from dml.pipeline.stages.dependence import compared

KEEPS = ("dml.pipeline.recording", "dml.pipeline.stored", "dml.reporting.records")  # they open models, write records


def write(params: Params, folder: Path) -> None:
    """Write what DVC's stages depend on: one small JSON per stage and combination of ``run``."""
    run, notebooks = params.run, ROOT / "notebooks"

    def put(name: str, notebook: str, code: Code, *decided: Any) -> None:
        head = {"digest": digest(*decided), f"notebooks/{notebook}": notebook_digest(notebooks / notebook)}
        write_json(folder / f"{name}.json", head | code)

    for dataset in run.datasets:
        recipe = params.recipe(dataset)
        put(f"prepare/{dataset}", "01_data.ipynb", prepare_code(recipe.data), data_settings(recipe.data))
        for loss in run.losses:
            for defense in dict.fromkeys(["standard", *run.defenses]):
                chapter = f"{paths.training_chapter(defense)}.ipynb"
                code, made_with = training_code(recipe, loss, defense), training_digest(recipe, loss, defense)
                put(f"train/{dataset}-{loss}-{defense}", chapter, code, made_with)
        for suite in run.suites:
            settings = params.suite(suite)
            for control in (None, *run.controls):
                code = evaluation_code(recipe, settings, control) | code_of(*KEEPS)
                name = f"control/{dataset}-{control}" if control else f"attack/{dataset}"
                decided = [evaluation_digest(recipe, settings), params.figures.eps]
                decided += [control_digest(recipe, control)] if control else []
                put(f"{name}-{suite}", "04_attack_evaluation.ipynb", code, *decided)
    # Which records are current depends on all other code, too.
    keys = [
        (dataset, loss, defense, suite)
        for dataset, recipe in params.recipes.items()
        for loss, defenses in [*((loss, recipe.defenses) for loss in recipe.losses), ("none", CONTROLS)]
        for defense in defenses
        for suite in params.suites
    ]
    current = {" ".join(key): digest(value) for key, value in expected(params, keys).items()}
    put("figures", "05_figures.ipynb", figures_code() | current, asdict(params.figures))
    trainings = compared(params).items()
    study = {f"{dataset} {loss} {name} {suite}" for (dataset, loss, suite), runs in trainings for name, _ in runs}
    shown = dependence_code(params) | {key: value for key, value in current.items() if key in study}
    paper = training_digest(params.recipe(run.datasets[0]), params.figures.loss, params.figures.paper)
    put("dependence", "06_dependence.ipynb", shown, paper, asdict(params.figures))


def figures_code() -> Code:
    """Return the code that decides tables, pages and figures."""
    shown = [f"dml.reporting.{file.stem}" for file in (ROOT / "dml" / "reporting").glob("*.py") if file.stem[0] != "_"]
    return code_of(STAGES + "figures", *shown)


def dependence_code(params: Params) -> Code:
    """Return the code that decides what chapter 6 shows, of the first dataset of ``run`` and of the study."""
    recipe = params.recipe(params.run.datasets[0])
    paper = recipe.defenses[params.figures.paper].get("defense", params.figures.paper)
    metric = recipe.losses[params.figures.loss].get("loss", params.figures.loss)
    named = [BACKBONES[recipe.model.backbone], LOSSES[metric], DEFENSES[paper], *MINERS.values()]
    shown = [
        f"dml.reporting.{name}"
        for name in ("dependence", "dependence_table", "records", "sections", "spelling", "style", "tables", "variants")
    ]
    return code_of(STAGES + "dependence", *named, *shown)


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dml digests", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="is replaced")
    chosen = parser.parse_args(arguments)
    try:
        with atomic(chosen.folder) as partial:
            write(load(), partial)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
