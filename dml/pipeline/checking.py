"""Check that the images of ``run`` exist and its defences go with its losses: `python -m dml check`."""

import argparse
import sys
from collections.abc import Iterable

import torch

from dml.common.files import ROOT
from dml.common.randomness import torch_generator
from dml.config.build import training as build
from dml.config.load import load
from dml.config.run import Params
from dml.config.schema import ParamsError
from dml.models.bfloat16 import computed
from dml.models.embedder import best_device
from dml.models.embedder import build as embedder
from dml.pipeline.preparing import TORCHVISION

CLASSES, IMAGES, SIDE, DIMENSION = 4, 3, 32, 16  # of the batch that a defence is tried on
FLOAT32 = "is bfloat16, in which this processor does not compute; it takes float32, which rounds otherwise"


def in_float32(params: Params, datasets: Iterable[str], suites: Iterable[str]) -> list[str]:
    """Return a sentence for each dataset and suite whose layers take another precision on this machine."""
    if computed(best_device()):
        return []
    trained = [
        f"recipes.{name}.schedule.precision"
        for name in datasets
        if any(schedule.precision == "bfloat16" for schedule in params.recipe(name).schedules.values())
    ]
    attacking = [f"suites.{name}.precision" for name in suites if params.suite(name).get("precision") == "bfloat16"]
    return [f"{setting} {FLOAT32}" for setting in trained + attacking]


def check_defenses(params: Params, dataset: str, loss: str, defenses: Iterable[str]) -> None:
    """Let defences cost a small batch, as in training, which would tell the same only after those before it.

    Raises:
        ParamsError: a defence cannot work with the loss.
    """
    recipe = params.recipe(dataset)
    labels = torch.arange(CLASSES).repeat_interleave(IMAGES)
    images = torch.rand(len(labels), 3, SIDE, SIDE, generator=torch_generator(0, "batch to try"))
    for name in defenses:
        recipe.check(loss, name)
        metric = build.loss(loss, recipe.losses[loss], classes=CLASSES, dimension=DIMENSION)
        defense = build.defense(name, recipe.defenses[name])
        model = embedder("conv4", DIMENSION, seed=0)
        try:
            defense(model, images, labels, metric, torch_generator(0, "try"), 1.0)
        except ValueError as error:
            where = f"recipes.{dataset}.defenses.{name}"
            raise ParamsError(f"{where} does not go with the loss {loss!r}: {error}") from error


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    argparse.ArgumentParser(prog="python -m dml check", description=__doc__).parse_args(arguments)
    try:
        params = load()
        for dataset in params.run.datasets:
            data = params.recipe(dataset).data
            if not (ROOT / data.path).exists():
                how = f"`python -m dml prepare {dataset}` downloads the images of {dataset!r}"
                how = how if data.source == TORCHVISION else f"put the images of {dataset!r} there"
                raise ParamsError(f"{data.path} does not exist; {how}")
            for loss in params.run.losses:
                check_defenses(params, dataset, loss, params.run.defenses)
    except ParamsError as error:
        print(f"ParamsError: {error}", file=sys.stderr)
        return 1
    for sentence in in_float32(params, params.run.datasets, params.run.suites):
        print(sentence, file=sys.stderr)
    return 0
