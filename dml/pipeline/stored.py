"""Prepared images and trained models as the pipeline or a notebook left them, opened under the settings asked for."""

import json
import textwrap
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from dml.common.files import ROOT
from dml.config.build import model as build
from dml.config.schema import Model, Recipe, Settings
from dml.data import base
from dml.models import embedder, weights
from dml.pipeline import paths
from dml.pipeline.digest import data_settings, training_settings

SETTINGS = "settings.json"  # beside the arrays or the weights that were made with them
# What readers raise for a file that was cut short or changed, beside an OSError, which names the file itself.
DAMAGED = (ValueError, LookupError, TypeError, EOFError, RuntimeError, SafetensorError)


class DamagedError(ValueError):
    """Something stored that cannot be read; the sentence names its folder and says what makes it anew."""


def open_data(dataset: str, recipe: Recipe, workspace: str) -> base.Dataset:
    """Open the prepared images of a dataset.

    Raises:
        FileNotFoundError: they are not prepared with the recipe's settings; the sentence says what differs.
        DamagedError: a file of them is cut short or no longer what was written.
        DatasetError: they do not fill the splits.
    """
    folder = find_made_with(workspace, paths.data_dir(dataset), data_settings(recipe.data), "01_data")
    try:
        start, height, width = np.load(folder / "index.npy").T
        wanted, found = (start + 3 * height * width).max(), (folder / "images.bin").stat().st_size
        if wanted != found:
            raise ValueError(f"images.bin has {found:,} bytes, and index.npy lists {wanted:,}")
        return base.load(folder)
    except base.DatasetError:
        raise
    except DAMAGED as error:
        raise _damaged(folder, error, "prepare the images again with notebook 01_data") from error


@dataclass(frozen=True)
class StoredModel:
    """A trained model with what it was trained with.

    Attributes:
        model: in evaluation mode.
        settings: of its training, as they lie beside the weights.
        digest: of those settings and of the code that trained it.
        epoch_kept: counted from 1.
        embedded: images that its training embedded.
        seconds: of its training, NaN if that is not known.
    """

    model: embedder.Embedder
    settings: Settings
    digest: str
    epoch_kept: int
    embedded: int
    seconds: float


def open_model(dataset: str, recipe: Recipe, loss: str, defense: str, seed: int, workspace: str) -> StoredModel:
    """Open a trained model, built from the settings that lie beside its weights.

    Raises:
        FileNotFoundError: none was trained with the recipe's settings; the sentence says what differs.
    """
    wanted = training_settings(recipe, loss, defense)
    run = paths.run_name(loss, defense, seed)
    return open_folder(
        find_made_with(workspace, paths.model_dir(dataset, run), wanted, paths.training_chapter(defense))
    )


def open_surrogate(dataset: str, recipe: Recipe, run: str, workspace: str) -> StoredModel:
    """Open a trained model whose adversarial images are tried on another one: that of the recipe, if there is one.

    One with other settings will do: a gate holds whatever the images come from. The record tells its weights.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: a file of it is cut short.
    """
    path = paths.model_dir(dataset, run)
    found = paths.candidates(workspace, path)
    wanted = [
        training_settings(recipe, loss, defense)
        for loss, defense in product(recipe.losses, recipe.defenses)
        if f"{loss}-{defense}" == run.rpartition("-")[0]
    ]
    found = [place for place in found if any(not _changes(place, settings) for settings in wanted)] or found
    if not found:
        raise FileNotFoundError(
            f"{path} does not exist; train it first: its adversarial images are tried on this model"
        )
    return open_folder(found[0])


def open_folder(folder: Path) -> StoredModel:
    """Open the trained model of a folder, whatever its settings.

    Raises:
        DamagedError: a file of it is cut short, or the weights are those of another architecture.
    """
    times = folder.parents[3] / paths.times_file(folder.parent.name, folder.name)
    try:
        stored, history = _json(folder / SETTINGS), _json(folder / "history.json")
        model = build.empty(Model(**stored["settings"]["model"]))
        return StoredModel(
            model=weights.load_weights(model, folder / "weights.safetensors", stored.get("weights")),
            settings=stored["settings"],
            digest=stored["digest"],
            epoch_kept=history["chosen"] + 1,
            embedded=history["embedded"],
            seconds=_json(times)["training"] if times.exists() else float("nan"),
        )
    except DAMAGED as error:
        raise _damaged(folder, error, "train the model again") from error


def _json(file: Path) -> Any:
    """Raises ValueError if the file holds no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file.name} is not valid JSON: {error}") from error


def _damaged(folder: Path, error: Exception, remedy: str) -> DamagedError:
    """The sentence on a folder that an error tells to be damaged."""
    what = f"it lacks {error}" if isinstance(error, KeyError) else textwrap.shorten(str(error), 160, placeholder=" ...")
    return DamagedError(f"{folder} is damaged ({what}); remove it and {remedy}, or `make repro`")


def find_made_with(workspace: str, path: Path, wanted: Settings, made_by: str) -> Path:
    """Return the first copy of ``path`` that was made with the wanted settings.

    Raises:
        FileNotFoundError: there is none; the sentence says what differs, and which notebook makes it.
    """
    differs = ""
    for place in paths.candidates(workspace, path):
        differs = _changes(place, wanted)
        if not differs:
            return place
    raise FileNotFoundError(
        f"{path} does not exist with these settings{differs}: run notebook {made_by} with them, or `make repro`"
    )


def _changes(place: Path, wanted: Settings) -> str:
    """What differs from the wanted settings in a folder, in brackets after a space; empty if nothing does."""
    try:
        file = place / SETTINGS
        found = _json(file)["settings"] if file.exists() else {}
        changed = differences(found, json.loads(json.dumps(wanted)))
    except DAMAGED:  # what is missing is made anew, by a reader of the sentence or a command
        return f" ({place.relative_to(ROOT) / SETTINGS} is damaged)"
    return f" ({place.relative_to(ROOT)} was made with other settings: {'; '.join(changed)})" if changed else ""


def differences(found: Settings, wanted: Settings, prefix: str = "") -> list[str]:
    """Return one phrase per setting that differs: ``schedule.epochs is 2, not 6``."""
    phrases = []
    for name in dict.fromkeys([*wanted, *found]):
        old, new = found.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            phrases += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            phrases.append(f"{prefix}{name} is {old}, not {new}")
    return phrases
