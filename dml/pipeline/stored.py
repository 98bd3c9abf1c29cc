"""Prepared images and trained models as the pipeline or a notebook left them, opened under the settings asked for."""

import json
from dataclasses import dataclass
from pathlib import Path

from dml.common.files import ROOT
from dml.config.build import model as build
from dml.config.schema import Model, Recipe, Settings
from dml.data import base
from dml.models import embedder, weights
from dml.pipeline import paths
from dml.pipeline.digest import data_settings, training_settings

SETTINGS = "settings.json"  # beside the arrays or the weights that were made with them


def open_data(dataset: str, recipe: Recipe, workspace: str) -> base.Dataset:
    """Open the prepared images of a dataset.

    Raises:
        FileNotFoundError: they are not prepared with the recipe's settings; the sentence says what differs.
    """
    return base.load(find_made_with(workspace, paths.data_dir(dataset), data_settings(recipe.data), "01_data"))


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
    chapter = "02_standard_training" if defense == "standard" else "03_robust_training"
    run = paths.run_name(loss, defense, seed)
    return open_folder(find_made_with(workspace, paths.model_dir(dataset, run), wanted, chapter))


def open_surrogate(dataset: str, run: str, workspace: str) -> StoredModel:
    """Open a trained model, whatever its settings: its adversarial images are only tried on another one.

    Raises:
        FileNotFoundError: there is none.
    """
    path = paths.model_dir(dataset, run)
    found = paths.candidates(workspace, path)
    if not found:
        raise FileNotFoundError(
            f"{path} does not exist; train it first: its adversarial images are tried on this model"
        )
    return open_folder(found[0])


def open_folder(folder: Path) -> StoredModel:
    """Open the trained model of a folder, whatever its settings."""
    stored = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    model = build.empty(Model(**stored["settings"]["model"]))
    times = folder.parents[3] / paths.times_file(folder.parent.name, folder.name)
    return StoredModel(
        model=weights.load_weights(model, folder / "weights.safetensors"),
        settings=stored["settings"],
        digest=stored["digest"],
        epoch_kept=history["chosen"] + 1,
        embedded=history["embedded"],
        seconds=json.loads(times.read_text(encoding="utf-8"))["training"] if times.exists() else float("nan"),
    )


def find_made_with(workspace: str, path: Path, wanted: Settings, made_by: str) -> Path:
    """Return the first copy of ``path`` that was made with the wanted settings.

    Raises:
        FileNotFoundError: there is none; the sentence says what differs, and which notebook makes it.
    """
    differs = ""
    for place in paths.candidates(workspace, path):
        file = place / SETTINGS
        stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        found = stored.get("settings", {})
        changed = differences(found, json.loads(json.dumps(wanted)))
        if not changed:
            return place
        differs = f" ({place.relative_to(ROOT)} was made with other settings: {'; '.join(changed)})"
    raise FileNotFoundError(
        f"{path} does not exist with these settings{differs}: run notebook {made_by} with them, or `make repro`"
    )


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
