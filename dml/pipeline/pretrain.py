"""Make a robust start: train one model of a recipe and write its backbone to a file that other recipes begin with.

    python -m dml pretrain tiny_imagenet normalized_softmax joint pretrained/grid4.safetensors

The training is one of the pipeline's: it prepares the images, resumes when killed, and is not repeated when today's
settings and code would make the same model again. Beside the weights stands a JSON file that says how they were made.
"""

import argparse
import copy
import hashlib
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dml.common.files import ROOT, write_json
from dml.config.load import load
from dml.config.schema import Recipe
from dml.models import weights
from dml.models.embedder import Embedder, build
from dml.pipeline import paths
from dml.pipeline.digest import training_digest
from dml.pipeline.preparing import prepare_missing
from dml.pipeline.stages.train import train
from dml.pipeline.stored import StoredModel, open_model
from dml.reporting.provenance import versions


def export(model: Embedder, made: dict[str, Any], file: Path) -> None:
    """Write a model's backbone as safetensors, and beside it, ending in .json, how it was made.

    Weights of several dimensions are rounded to half precision, for half the megabytes; a model that begins with them
    computes in its own.

    Args:
        model: trained; its head is left out, since each dataset gets a new one.
        made: what the JSON says, beside the SHA-256 of the weights.
        file: ends in ``.safetensors``.
    """
    backbone = copy.deepcopy(model.backbone)
    for parameter in backbone.parameters():
        if parameter.dim() > 1:  # statistics and biases may lie below what half precision resolves
            parameter.data = parameter.data.half()
    weights.save(backbone, file)
    write_json(file.with_suffix(".json"), {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), **made})


def pretrain(dataset: str, loss: str, defense: str, seed: int, file: Path) -> None:
    """Train if needed, and export.

    Args:
        dataset: a recipe of params.yaml whose images lie below data/.
        loss, defense: of that recipe.
        seed: of the training.
        file: to write, below the project root.

    Raises:
        ParamsError, ValueError: a setting is wrong, or the recipe lacks the loss or defence.
        DatasetError: the images are missing or cannot be read.
        FloatingPointError: the loss is no longer finite.
    """
    recipe, used = load().recipe(dataset), versions()  # which asks for packages before hours of training
    recipe.check(loss, defense)
    if told := no_start(recipe):
        print(told, file=sys.stderr)
    folder = paths.model_dir(dataset, paths.run_name(loss, defense, seed))
    stored = _trained(dataset, recipe, loss, defense, seed)
    history = json.loads((ROOT / folder / "history.json").read_text(encoding="utf-8"))
    about = json.loads((ROOT / paths.data_dir(dataset) / "about.json").read_text(encoding="utf-8"))
    images = {name: about[name] for name in ("dataset", "images", "source_sha256")} | {"origin": recipe.data.origin}
    made = {
        "images": images,
        "settings": stored.settings,
        "seed": seed,
        "digest": stored.digest,
        "epochs": history["epochs"],
        "epoch_kept": stored.epoch_kept,
        "embedded": stored.embedded,
        "versions": used,
    }
    export(stored.model, made, ROOT / file)
    print(f"{file} holds the backbone {recipe.model.backbone} of epoch {stored.epoch_kept}")


def no_start(recipe: Recipe) -> str | None:
    """Return why no recipe with the same backbone could begin with weights of this one; None if one could."""
    name, options = recipe.model.backbone, recipe.model.options
    made = build(name, recipe.model.dimension, seed=0, options=options)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "start.safetensors"
        weights.save(made.backbone, file)
        try:
            begun = build(name, recipe.model.dimension, seed=1, start=str(file), options=options)
        except ValueError:
            return f"no recipe can begin with weights of {name}, which serve other programs; grid4 can be a start"
    if weights.digest(begun.backbone) == weights.digest(made.backbone):
        return None
    return f"a recipe would begin with a part of the weights of {name} alone; take the backbone grid4"


def _trained(dataset: str, recipe: Recipe, loss: str, defense: str, seed: int) -> StoredModel:
    """Open the model that today's settings and code make; prepare the images and train it if there is none."""
    prepare_missing(dataset, ".", {})
    try:
        stored = open_model(dataset, recipe, loss, defense, seed, ".")
        if stored.digest == training_digest(recipe, loss, defense):
            return stored
    except FileNotFoundError:
        pass
    train(dataset, loss, defense, seed, workspace=".")
    return open_model(dataset, recipe, loss, defense, seed, ".")


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dml pretrain", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("loss")
    parser.add_argument("defense")
    parser.add_argument("file", type=Path, help="to write, for example pretrained/grid4.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    if chosen.file.suffix != ".safetensors":
        parser.error(f"{chosen.file} must end in .safetensors")
    try:
        pretrain(chosen.dataset, chosen.loss, chosen.defense, chosen.seed, chosen.file)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
