"""Chapters 2 and 3: train one model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dml.common.files import atomic, write_json
from dml.common.randomness import seeded_global
from dml.config.build import model as build_model
from dml.config.build import training as build
from dml.config.load import load
from dml.config.schema import Recipe
from dml.data.base import Dataset
from dml.data.turning import turned
from dml.defenses.base import Defense
from dml.losses.base import Loss
from dml.models import weights
from dml.models.embedder import Embedder, best_device
from dml.pipeline import paths
from dml.pipeline.digest import digest, training_digest, training_settings
from dml.pipeline.stages.prepare import check_queries
from dml.pipeline.stored import SETTINGS, open_data
from dml.training.checkpoint import Checkpoint
from dml.training.loop import History, fit
from dml.training.selection import validator


@dataclass(frozen=True)
class Training:
    """A finished training, for a chapter to look at.

    Attributes:
        model: with the weights of the kept epoch, in evaluation mode.
        history: of its epochs.
        data: that it was trained on.
        loss, defense: that it was trained with.
        seed: of its first weights, batches and draws.
    """

    model: Embedder
    history: History
    data: Dataset
    loss: Loss
    defense: Defense
    seed: int


def train(
    dataset: str,
    loss: str,
    defense: str,
    seed: int,
    *,
    workspace: str = "scratch",
    changes: Mapping[str, Any] | None = None,
) -> Training:
    """Train a model and keep it: weights, the settings that made them, and the history of its epochs.

    A killed training continues from its last epoch when it is called again with the same settings and code.

    Args:
        dataset: a recipe of params.yaml, prepared by chapter 1.
        loss, defense: of that recipe.
        seed: of the first weights, the batches and every draw.
        workspace: below the project root, where results go; ``"."`` is the pipeline's.
        changes: settings to replace, by dotted key.

    Raises:
        ParamsError, ValueError: a setting is wrong, or the recipe lacks the loss or defence.
        FileNotFoundError: the dataset is not prepared with these settings.
        FloatingPointError: the loss is no longer finite.
    """
    params = load(changes)
    recipe = params.recipe(dataset)
    recipe.check(loss, defense)
    data = open_data(dataset, recipe, workspace)
    check_queries(params, dataset, len(data.test if data.queries is None else data.queries))
    run, device = paths.run_name(loss, defense, seed), best_device()
    print(f"{dataset}, {run}: {len(data.train):,} images of {len(data.train.classes)} classes, on {device}")
    key = training_digest(recipe, loss, defense)
    state = digest(key, dataset, seed)
    checkpoint = Checkpoint(paths.checkpoint_dir(workspace) / dataset / f"{run}-{state}.pt", state)
    trained = fit_recipe(recipe, data, loss, defense, seed, checkpoint)
    folder = paths.output(workspace, paths.model_dir(dataset, run))
    made_with = {"settings": training_settings(recipe, loss, defense), "seed": seed, "digest": key}
    with atomic(folder) as partial:
        partial.mkdir()
        weights.save(trained.model, partial / "weights.safetensors")
        write_json(partial / SETTINGS, made_with)
        history = trained.history
        kept = {"epochs": history.epochs, "chosen": history.chosen, "embedded": history.embedded}
        write_json(partial / "history.json", kept)
    write_json(
        paths.output(workspace, paths.times_file(dataset, run)), {"training": round(sum(trained.history.seconds), 1)}
    )
    checkpoint.discard()
    return trained


def fit_recipe(
    recipe: Recipe, data: Dataset, loss: str, defense: str, seed: int, checkpoint: Checkpoint | None
) -> Training:
    """Build model, loss and defence from a recipe and train them.

    Args:
        recipe, loss, defense: the settings, and which of them.
        data: prepared images.
        seed: of the first weights, the batches and every draw.
        checkpoint: where the state of the training is kept, None to keep nothing.
    """
    device, check = best_device(), recipe.validation
    model = build_model.start(recipe.model, data.train, seed=seed).to(device)
    schedule = recipe.schedules[defense]
    split = turned(data.train) if schedule.turns else data.train
    classes = int(split.labels.max()) + 1
    with seeded_global(seed, "loss"):  # proxies and the like
        metric = build.loss(loss, recipe.losses[loss], classes=classes, dimension=model.dimension).to(device)
    trained = build.defense(defense, recipe.defenses[defense]).to(device)
    history = fit(
        model,
        split,
        metric,
        trained,
        schedule,
        seed=seed,
        validate=validator(data.validation, queries=check.queries, eps=check.eps, steps=check.steps, seed=seed),
        checkpoint=checkpoint,
    )
    return Training(model, history, data, metric, trained, seed)
