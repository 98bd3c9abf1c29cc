"""Chapter 6: how the tuples of a batch depend on each other, and what that means for adversarial training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from dml.attacks.balls import radius_text
from dml.common.files import ROOT, write_text
from dml.common.randomness import numpy_generator
from dml.config.build import model as build_model
from dml.config.build import training as build
from dml.config.load import load
from dml.config.run import Params
from dml.data.base import Split
from dml.data.sampling import balanced_batches
from dml.data.transforms import to_float
from dml.evaluation import dependence, plane
from dml.models.embedder import best_device
from dml.pipeline import paths
from dml.pipeline.digest import expected
from dml.pipeline.stored import open_data, open_model
from dml.reporting import dependence_table, records, style
from dml.reporting.spelling import count, spell, table

FOLDER = Path("results", "dependence")
CLASSES, IMAGES = 12, 4  # of a batch to look into, and images of each
CAPTIONS = {
    "two_ways": "Image 2 is the positive of tuple 1 and the negative of tuple 2. A perturbation that raises one tuple "
    "lowers the other; a shared one raises both, each by less.",
    "plane": "Nine classes in the plane, embedded on a circle, after the same number of steps. Each class is drawn on "
    "its own ring; pale arcs are what its points reach within their balls. A constant embedding costs the margin "
    "(dashed line), whatever the attack. Semi-hard mining, the first seed. All models elsewhere mine by distance; so "
    "mined, nothing collapses in the table below, but `joint` and `amd` do on glyphs at 20/255.",
    "batches": "Left: how one perturbed image changes its own tuple and the others that hold the image. Middle: share "
    "of the perturbed images that lower another tuple. Bars are 95% intervals over batches. Right: how many tuples "
    "hold an image, and in how many roles, under the last of the models.",
}
WRITTEN = (
    "Written by [chapter 6](../../notebooks/06_dependence.ipynb), which says what the figures show and do not show."
)
PLANE_TABLE = ("", "R@1 is the mean over seeds, in brackets the lowest and the highest.")
BATCH_TABLE = (
    "",
    "Means over batches, ± half of the 95% interval. *Loss rises* and *falls*: shares of the tuples whose loss, with "
    "all perturbed images in place, is higher or lower than without; *mean change* is that of the loss. The next two "
    "columns are changes of d(a, p) − d(a, n), as in the figure; the last is the share of perturbed images that lower "
    "it in another tuple.",
)


@dataclass(frozen=True)
class Batches:
    """Batches of a dataset under its models.

    Attributes:
        counts: (N, 3), tuples in which each image occurs, by role, under the last model.
        means: see :func:`dml.evaluation.dependence.means`, by ``model`` and ``adversary``.
        missing: one sentence per model that is not there.
        about: one sentence on what was measured.
    """

    counts: np.ndarray
    means: pd.DataFrame
    missing: list[str]
    about: str


def in_the_plane(seeds: Sequence[int], miners: Sequence[str]) -> list[plane.Trained]:
    """Train every defence in the plane, with each miner and seed."""
    return [
        plane.train(name, defense, seed, miner=miner)
        for miner in miners
        for name, defense in plane.defenses().items()
        for seed in seeds
    ]


def in_batches(dataset: str, batches: int, *, workspace: str, changes: Mapping[str, Any] | None = None) -> Batches:
    """Measure how perturbations act on other tuples in batches of training images, under the models that are there.

    The models are an untrained one, and those of the baseline and of the paper's defence with the loss whose models
    figures show. All adversaries have the radius and the steps of the paper's defence.

    Args:
        dataset: a recipe of params.yaml.
        batches: how many.
        workspace: below the project root; its data and models are read before the pipeline's.
        changes: settings to replace, by dotted key.

    Raises:
        ParamsError: a setting is wrong.
        FileNotFoundError: the dataset is not prepared with these settings.
    """
    params = load(changes)
    recipe, figures, seed = params.recipe(dataset), params.figures, params.run.seeds[0]
    train = open_data(dataset, recipe, workspace).train
    untrained = build_model.start(recipe.model, train, seed=seed)
    models: dict[str, nn.Module] = {"untrained": untrained}
    missing = []
    for defense in (figures.baseline, figures.paper):
        try:
            models[spell(defense)] = open_model(dataset, recipe, figures.loss, defense, seed, workspace).model
        except FileNotFoundError as error:
            missing.append(str(error))
    classes = int(train.labels.max()) + 1
    loss = build.loss(figures.loss, recipe.losses[figures.loss], classes=classes, dimension=untrained.dimension)
    paper = build.defense(figures.paper, recipe.defenses[figures.paper])
    compared = dependence.adversaries(paper.eps, paper.steps)
    drawn = _draw(train, batches, seed)
    tables = []
    for name, model in models.items():
        model.to(best_device()).eval()
        tables.append(dependence.batch_changes(model, drawn, loss, compared, seed).assign(model=name))
    means = dependence.means(pd.concat(tables), ["model", "adversary"])
    counts = dependence.occurrences(model, drawn, loss, seed)
    held = counts.sum(1)
    about = (
        f"{len(drawn)} batches of {len(drawn[0][1])} training images of {dataset}, {spell(figures.loss)} loss. All "
        f"adversaries take {count(paper.steps, 'step')} within eps {radius_text(paper.eps)}. Under the last of the "
        f"models an image stands in {held.mean():.1f} tuples on average, and in {held.max()} at most."
    )
    return Batches(counts, means, missing, about)


def _draw(split: Split, batches: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Images and labels of some balanced batches, on the model's device."""
    generator, device = numpy_generator(seed, "batches to look into"), best_device()
    classes = min(CLASSES, len(split.classes))
    drawn = balanced_batches(
        split.labels, classes=classes, images_per_class=IMAGES, batches=batches, generator=generator
    )
    return [
        (to_float(split.images[rows], device), torch.from_numpy(split.labels[rows].copy()).to(device)) for rows in drawn
    ]


def study_table(*, workspace: str, changes: Mapping[str, Any] | None = None) -> list[str]:
    """Show what every setting of the study achieves, as lines of Markdown; what was not run yet is listed below.

    Args:
        workspace: below the project root; its records replace the pipeline's of the same run.
        changes: settings to replace, by dotted key.

    Raises:
        ParamsError: a setting is wrong.
        ValueError: a file is no record.
    """
    params = load(changes)
    found = [
        record
        for dataset in dict.fromkeys(dataset for block in params.study.values() for dataset in block.datasets)
        for record in records.read(ROOT / paths.RECORDS / dataset, paths.output(workspace, paths.RECORDS / dataset))
    ]
    current, stale = records.split_stale(found, expected(params, map(records.run_key, found)))
    return study_lines(params, current, [old.record for old in stale])


def study_lines(params: Params, current: Sequence[records.Record], stale: Sequence[records.Record]) -> list[str]:
    """Show the tables of all datasets and losses of the study that claims may rest on; see :func:`study_table`."""
    eps, lines = params.figures.eps, []
    for (dataset, loss, suite), wanted in compared(params).items():
        keys = {(dataset, loss, name, suite) for name, _ in wanted}
        here, old = ([record for record in held if records.run_key(record) in keys] for held in (current, stale))
        lines += ["", f"**{dataset}, {spell(loss)} loss, suite `{suite}`, eps {radius_text(eps)}**"]
        lines += dependence_table.settings_table(here, eps, params.figures) if here else []
        gaps = dependence_table.missing(wanted, here, old)
        lines += ["", *(f"- {text}" for text in gaps)] if gaps else []
    return lines


def compared(params: Params) -> dict[tuple[str, str, str], list[tuple[str, int]]]:
    """Dataset, loss and suite -> defence and seed of each training that all blocks of the study compare here.

    Left out is what has no two classes of defences that say what they perturb.
    """
    found: dict[tuple[str, str, str], list[tuple[str, int]]] = {}
    kinds: dict[tuple[str, str, str], set[str]] = {}
    for block in params.study.values():
        if not params.suite(block.suite).get("claims", False):
            continue
        for dataset, (loss, names) in product(block.datasets, block.losses.items()):
            defenses, key = params.recipe(dataset).defenses, (dataset, loss, block.suite)
            for name in names:
                perturbs = dependence_table.perturbs({"name": name, **defenses[name]}) is not None
                if perturbs:
                    kinds.setdefault(key, set()).add(defenses[name].get("defense", name))
                if perturbs or name == params.figures.baseline:
                    found.setdefault(key, []).extend((name, seed) for seed in block.seeds)
    return {key: runs for key, runs in found.items() if len(kinds.get(key, ())) > 1}


def save(figure: Figure, name: str, workspace: str) -> Path:
    """Write a figure with its caption below results/, and return the PNG."""
    return style.save(figure, paths.output(workspace, FOLDER), name, CAPTIONS[name])


def write_page(
    workspace: str, plane_runs: pd.DataFrame, about: str, batches: pd.DataFrame, study: Sequence[str]
) -> Path:
    """Write results/dependence/README.md: every figure with its table, then the study.

    Args:
        workspace: below the project root, where results go.
        plane_runs: see :func:`dml.reporting.dependence.plane_table`.
        about: what was measured in batches, see :class:`Batches`.
        batches: see :func:`dml.reporting.dependence.batch_table`.
        study: see :func:`study_table`.
    """
    titles = {
        "two_ways": ("One image in two tuples", []),
        "plane": ("Training in a plane", [*PLANE_TABLE, *_lines(plane_runs)]),
        "batches": ("Inside batches", ["", about, *BATCH_TABLE, *_lines(batches)]),
    }
    lines = ["# Dependence between the tuples of a batch", "", WRITTEN]
    for name, (title, below) in titles.items():
        lines += ["", f"## {title}", "", f"![{title}]({name}.png)", "", CAPTIONS[name], *below]
    lines += ["", "## What is perturbed, and against what", *study]
    file = paths.output(workspace, FOLDER) / "README.md"
    write_text(file, "\n".join(lines).rstrip() + "\n")
    return file


def _lines(found: pd.DataFrame) -> list[str]:
    return table(list(found.columns), found.astype(str).to_numpy().tolist())
