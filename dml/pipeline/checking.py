"""Check params.yaml, and that the raw images of every dataset of ``run`` exist: `python -m dml check`."""

import argparse
import sys

from dml.common.files import ROOT
from dml.config.load import load
from dml.config.schema import ParamsError


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
    return 0
