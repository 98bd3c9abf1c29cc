"""Chapters 2 and 3: train one model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dml.common.files import atomic, write_json
from dml.common.processes import Say, joined, launch, leads, size, to_nobody, wanted
from dml.common.randomness import seeded_global
from dml.config.build import model as build_model
from dml.config.build import training as build
from dml.config.load import load
from dml.config.schema import Recipe, Settings
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
from dml.training.loop import History, fit, to_stderr
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

    A killed training continues from its last saved step when it is called again with the same settings and code.

    With ``run.devices`` above 1 this process starts as many others, which share the work, and waits for them. Started
    by torchrun it shares the work with the processes beside it, and one of them writes.

    Args:
        dataset: a recipe of params.yaml, prepared by chapter 1.
        loss, defense: of that recipe.
        seed: of the first weights, the batches and every draw.
        workspace: below the project root, where results go; ``"."`` is the pipeline's.
        changes: settings to replace, by dotted key.

    Raises:
        ParamsError, ValueError: a setting is wrong, the recipe lacks the loss or defence, a suite of ``run`` or of a
            study on the dataset wants more queries than there are, or there are too few GPUs.
        FileNotFoundError: the dataset is not prepared with these settings.
        FloatingPointError: the loss is no longer finite.
    """
    params = load(changes)
    recipe = params.recipe(dataset)
    recipe.check(loss, defense)
    data = open_data(dataset, recipe, workspace)
    check_queries(params, dataset, len(data.test if data.queries is None else data.queries))
    run, key = paths.run_name(loss, defense, seed), training_digest(recipe, loss, defense)
    checkpoint = _checkpoint(workspace, dataset, run, key)
    processes, told = wanted(params.run.devices), (print, to_stderr)
    with joined():
        if leads():
            shared = "" if (together := max(processes, size())) == 1 else f", in {together} processes"
            images = f"{len(data.train):,} images of {len(data.train.classes)} classes"
            print(f"{dataset}, {run}: {images}, on {best_device()}{shared}")
        if processes > 1:
            launch(processes, _work, dataset, loss, defense, seed, workspace, changes, report=print, timing=to_stderr)
            told = to_nobody, to_nobody  # the checkpoint holds the finished training, and its lines are printed
        trained = fit_recipe(recipe, data, loss, defense, seed, checkpoint, *told)
        if leads():
            made_with = {"settings": training_settings(recipe, loss, defense), "seed": seed, "digest": key}
            _keep(trained, made_with, workspace, dataset, run)
            checkpoint.discard()
    return trained


def _work(
    dataset: str,
    loss: str,
    defense: str,
    seed: int,
    workspace: str,
    changes: Mapping[str, Any] | None,
    *,
    report: Say,
    timing: Say,
) -> None:
    """Train in one of several processes; the finished training stays in the checkpoint."""
    recipe = load(changes).recipe(dataset)
    data = open_data(dataset, recipe, workspace)
    checkpoint = _checkpoint(
        workspace, dataset, paths.run_name(loss, defense, seed), training_digest(recipe, loss, defense)
    )
    fit_recipe(recipe, data, loss, defense, seed, checkpoint, report, timing)


def _checkpoint(workspace: str, dataset: str, run: str, key: str) -> Checkpoint:
    state = digest(key, dataset, run)
    return Checkpoint(paths.checkpoint_dir(workspace) / dataset / f"{run}-{state}.pt", state)


def _keep(trained: Training, made_with: Settings, workspace: str, dataset: str, run: str) -> None:
    """Write weights, settings, history and times."""
    history = trained.history
    with atomic(paths.output(workspace, paths.model_dir(dataset, run))) as partial:
        partial.mkdir()
        weights.save(trained.model, partial / "weights.safetensors")
        write_json(partial / SETTINGS, made_with | {"weights": weights.digest(trained.model)})
        kept = {"epochs": history.epochs, "chosen": history.chosen, "embedded": history.embedded}
        write_json(partial / "history.json", kept)
    times = {"training": round(sum(history.seconds), 1)}
    write_json(paths.output(workspace, paths.times_file(dataset, run)), times)


def fit_recipe(
    recipe: Recipe,
    data: Dataset,
    loss: str,
    defense: str,
    seed: int,
    checkpoint: Checkpoint | None,
    report: Say = print,
    timing: Say = to_stderr,
) -> Training:
    """Build model, loss and defence from a recipe and train them.

    Args:
        recipe, loss, defense: the settings, and which of them.
        data: prepared images.
        seed: of the first weights, the batches and every draw.
        checkpoint: where the state of the training is kept, None to keep nothing.
        report, timing: see :func:`dml.training.loop.fit`.
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
        keep_last=not data.held_out,
        checkpoint=checkpoint,
        report=report,
        timing=timing,
    )
    return Training(model, history, data, metric, trained, seed)
