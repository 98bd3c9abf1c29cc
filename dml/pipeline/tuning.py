"""Settings of a recipe compared on held-out training classes; the test classes are never read.

    python -m dml tune flowers triplet robust '{defenses.robust.eps: 8/255}' '{defenses.robust.eps: 12/255}'

Published gains of metric losses shrank to little once settings were chosen this way and not by test figures (Musgrave
et al. 2020). Each line of results/tuning.csv is a separate training on the training classes that are not held out.
The held-out classes are attacked by the suite that the headline of results/ shows: the few steps that select an epoch
leave more queries, and not equally more of every model. With few held-out classes, hold out more of them; lines are
comparable that hold out the same. Missing images are prepared first:

    python -m dml tune grocery triplet robust '{data.validation_fraction: 0.5, schedule.classes: 20}'
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from dml.attacks.balls import radius_text
from dml.common.files import ROOT, atomic, write_text
from dml.config.build import evaluation as build
from dml.config.load import UNREADABLE, load
from dml.config.run import Params
from dml.config.schema import Recipe
from dml.data import base
from dml.evaluation.suites.base import Suite
from dml.models.embedder import Embedder
from dml.pipeline import paths
from dml.pipeline.digest import data_settings
from dml.pipeline.locks import alone
from dml.pipeline.preparing import prepare_missing
from dml.pipeline.stages.train import fit_recipe
from dml.pipeline.stored import find_made_with
from dml.reporting.trials import trials_page
from dml.retrieval.index import Search

HELD_OUT = "data.validation_fraction"  # the one setting of data that needs no other images
TABLE = Path("results", "tuning.csv")
KEY = ["dataset", "loss", "defense", "settings", "seed"]


def held_out_scores(model: Embedder, split: base.Split, suite: Suite) -> dict[str, float]:
    """Score a trained model on all images of the held-out classes.

    Returns:
        natural ``R@1`` and ``MAP@R``, and the R@1 that the worst of the suite's attacks leaves at each of its radii.
    """
    search = Search.over(model, split)
    natural = search.natural()
    scores = {"R@1": float(natural.r1.float().mean()), "MAP@R": float(natural.map_r.float().mean())}
    outcomes = suite.evaluate(search, np.arange(len(split)), seed=0, report=lambda line: None).outcomes
    worst = outcomes[outcomes["attack"] == "worst"].groupby("eps")["r1"].mean()
    return scores | {f"R@1 at {radius_text(eps)}": float(left) for eps, left in worst.items()}


def score(row: dict[str, Any], baseline: str) -> float:
    """Return what settings are chosen by, higher is better.

    For the undefended baseline it is natural MAP@R, since its R@1 is nearly full on few classes. For every other
    defence it is the mean of R@1 without attack and at the radii of the suite.
    """
    if row["defense"] == baseline:
        return row["MAP@R"]
    left = [value for name, value in row.items() if name.startswith("R@1")]
    return sum(left) / len(left)


def with_settings(dataset: str, loss: str, defense: str, settings: dict[str, Any]) -> Params:
    """Return params.yaml with some settings of a recipe replaced.

    Raises:
        ParamsError: a setting is unknown or cannot be used.
        ValueError: a setting changes the data, no training class is held out, or the recipe lacks the loss or defence.
    """
    if any(key.split(".")[0] == "data" and key != HELD_OUT for key in settings):
        raise ValueError(f"settings of data other than {HELD_OUT} cannot be tried: the images are prepared already")
    params = load({f"recipes.{dataset}.{key}": value for key, value in settings.items()})
    (recipe := params.recipe(dataset)).check(loss, defense)
    if not recipe.data.validation_fraction:
        raise ValueError(f"{dataset} holds no training class out; add {HELD_OUT}: 0.2 to the settings")
    return params


def train_and_score(
    dataset: str, loss: str, defense: str, settings: dict[str, Any], *, seed: int, workspace: str = "."
) -> dict[str, Any]:
    """Train once with some settings of the recipe replaced.

    Args:
        dataset: a recipe of params.yaml, whose images are prepared.
        loss, defense: of that recipe.
        settings: by dotted key within the recipe, for example ``{"defenses.robust.eps": 8/255}``.
        seed: of the training.
        workspace: below which the prepared images are looked for first.

    Returns:
        A row of the table; ``embedded`` counts the images that the model embedded in training, which is what it costs.

    Raises:
        ValueError: see :func:`with_settings`.
        FileNotFoundError: the dataset is not prepared.
    """
    params = with_settings(dataset, loss, defense, settings)
    recipe = params.recipe(dataset)
    prepared = data_settings(load().recipe(dataset).data)
    folder = find_made_with(workspace, paths.data_dir(dataset), prepared, "01_data")
    data = base.load(folder, validation_fraction=recipe.data.validation_fraction)
    trained = fit_recipe(recipe, data, loss, defense, seed, None)
    row = {"dataset": dataset, "loss": loss, "defense": defense, "settings": as_text(settings), "seed": seed}
    suite = build.suite(params.suite(params.figures.suite))
    row |= {"embedded": trained.history.embedded, "epoch_kept": trained.history.chosen + 1}
    row |= held_out_scores(trained.model, data.validation, suite)
    return row | {"score": score(row, params.figures.baseline)}


def as_settings(text: str) -> dict[str, Any]:
    """Raises ValueError if the text is no YAML of keys and values."""
    try:
        settings = yaml.safe_load(text)
    except UNREADABLE:
        settings = None
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"{text!r} holds no settings; write '{{key: value}}', '{{}}' for the recipe as it is")
    return settings


def as_text(settings: dict[str, Any]) -> str:
    """One line of YAML, the same for the same settings."""
    return yaml.safe_dump(settings, default_flow_style=True, sort_keys=True, width=10_000).strip()


def add(row: dict[str, Any], file: Path) -> None:
    """Put a row into the table in place of an earlier one of the same training, best first; one process at a time.

    The page beside it (:mod:`dml.reporting.trials`) is written anew.
    """
    with alone(paths.checkpoint_dir(".") / "tuning.lock"):
        table = pd.DataFrame([row])
        if file.exists():
            table = pd.concat([pd.read_csv(file), table]).drop_duplicates(KEY, keep="last")
        counts = [name for name in ("embedded", "epoch_kept") if name in table]
        table = table.astype(dict.fromkeys(counts, "Int64"))  # a row without one would turn the others into fractions
        table = table.sort_values(["dataset", "defense", "loss", "score"], ascending=[True, True, True, False])
        with atomic(file) as partial:
            table.to_csv(partial, index=False, float_format="%.4f")
        write_text(file.with_suffix(".md"), page(file))


def page(file: Path) -> str:
    """Return the page of a table, with costs relative to standard training by the recipes of today."""
    trials, params = pd.read_csv(file), load()
    known = [name for name in trials["dataset"].unique() if name in params.recipes]
    return trials_page(trials, {name: standard_images(params.recipe(name)) for name in known}, params.figures)


def standard_images(recipe: Recipe) -> int | None:
    """Return how many images standard training embeds; None where that depends on the number of training images."""
    schedule = recipe.schedules["standard"]
    batch = schedule.classes * schedule.images_per_class
    return schedule.epochs * schedule.batches * batch or None


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dml tune", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("loss")
    parser.add_argument("defense")
    parser.add_argument("settings", nargs="+", help="YAML, keys within the recipe: '{schedule.epochs: 5}'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, default=ROOT / TABLE)
    chosen = parser.parse_args(arguments)
    try:
        trials = [as_settings(text) for text in chosen.settings]
        for settings in trials:  # all are read before the first is trained
            with_settings(chosen.dataset, chosen.loss, chosen.defense, settings)
        prepare_missing(chosen.dataset, ".", {})
        for settings in trials:
            row = train_and_score(chosen.dataset, chosen.loss, chosen.defense, settings, seed=chosen.seed)
            add(row, chosen.table)
            print("  ".join(f"{name} {v:.3f}" if isinstance(v, float) else f"{name} {v}" for name, v in row.items()))
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
