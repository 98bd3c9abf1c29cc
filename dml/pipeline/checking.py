"""Check params.yaml, and that the raw images of every dataset of ``run`` exist: `python -m dml check`."""

import argparse
import sys
from collections.abc import Iterable

from dml.common.files import ROOT
from dml.config.load import load
from dml.config.run import Params
from dml.config.schema import ParamsError
from dml.models.bfloat16 import computed
from dml.models.embedder import best_device

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


def main(arguments: list[str]) -> int:
    """Run the command line and return its exit status."""
    argparse.ArgumentParser(prog="python -m dml check", description=__doc__).parse_args(arguments)
    try:
        params = load()
        for dataset in params.run.datasets:
            place = ROOT / params.recipe(dataset).data.path
            if not place.exists():
                raise ParamsError(f"{place.relative_to(ROOT)} does not exist; put the images of {dataset!r} there")
    except ParamsError as error:
        print(f"ParamsError: {error}", file=sys.stderr)
        return 1
    for sentence in in_float32(params, params.run.datasets, params.run.suites):
        print(sentence, file=sys.stderr)
    return 0
