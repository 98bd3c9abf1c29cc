"""The command line: `python -m dml COMMAND`.

attack       attack one model with one suite, in one process or under torchrun
carry        carry records over a change of code that changes no result, after making some again
check        check params.yaml and that the images of every dataset of `run` exist
datasets     download the benchmarks, check what is there, unpack archives of images
digests      write what the stages of the pipeline depend on
evaluate     attack any retrieval model on a folder of images, and write a report
leaderboard  add a model to the leaderboard, or check a claim that breaks one
notebook     strip notebooks, or run one with parameters
pretrain     train a robust start that other recipes begin with
repro        run the pipeline, independent stages side by side
study        train and attack many defences, block by block
train        train one model, in one process or under torchrun
tune         compare settings on held-out training classes
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

Command = Callable[[list[str]], int]


def attack(arguments: list[str]) -> int:
    """Attack one model with one suite, in one process or under torchrun."""
    from dml.pipeline.attacking import main as command

    return command(arguments)


def carry(arguments: list[str]) -> int:
    """Carry records over a change of code that changes no result, after making some again."""
    from dml.pipeline.carry import main as command

    return command(arguments)


def check(arguments: list[str]) -> int:
    """Check params.yaml and that the raw images of every dataset of ``run`` exist."""
    from dml.common.files import ROOT
    from dml.config.load import load
    from dml.config.schema import ParamsError

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


def datasets(arguments: list[str]) -> int:
    """Download the benchmarks, check what is there, unpack archives of images."""
    from dml.data.commands import main as command

    return command(arguments)


def digests(arguments: list[str]) -> int:
    """Write what the stages of the pipeline depend on, and stripped copies of the notebooks."""
    from dml.common.files import atomic
    from dml.config.load import load
    from dml.config.schema import ParamsError
    from dml.pipeline.digest import write

    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m dml digests FOLDER", file=sys.stderr)
        return 2
    try:
        with atomic(Path(arguments[0])) as partial:
            write(load(), partial)
    except ParamsError as error:
        print(f"ParamsError: {error}", file=sys.stderr)
        return 1
    return 0


def evaluate(arguments: list[str]) -> int:
    """Attack any retrieval model on a folder of images, and write a report."""
    from dml.api.command import main as command

    return command(arguments)


def leaderboard(arguments: list[str]) -> int:
    """Add a model to the leaderboard, or check a claim that breaks one."""
    from dml.api.leaderboard.command import main as command

    return command(arguments)


def notebook(arguments: list[str]) -> int:
    """Strip notebooks, or run one with parameters."""
    from dml.pipeline.notebook import main as command

    return command(arguments)


def pretrain(arguments: list[str]) -> int:
    """Train a robust start that other recipes begin with."""
    from dml.pipeline.pretrain import main as command

    return command(arguments)


def repro(arguments: list[str]) -> int:
    """Run the pipeline, independent stages side by side."""
    from dml.pipeline.repro import main as command

    return command(arguments)


def study(arguments: list[str]) -> int:
    """Train and attack many defences, block by block."""
    from dml.pipeline.study import main as command

    return command(arguments)


def train(arguments: list[str]) -> int:
    """Train one model, in one process or under torchrun."""
    from dml.pipeline.training import main as command

    return command(arguments)


def tune(arguments: list[str]) -> int:
    """Compare settings on held-out training classes."""
    from dml.pipeline.tuning import main as command

    return command(arguments)


COMMANDS: dict[str, Command] = {
    "attack": attack,
    "carry": carry,
    "check": check,
    "datasets": datasets,
    "digests": digests,
    "evaluate": evaluate,
    "leaderboard": leaderboard,
    "notebook": notebook,
    "pretrain": pretrain,
    "repro": repro,
    "study": study,
    "train": train,
    "tune": tune,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] not in COMMANDS:
        print(__doc__, file=sys.stderr)
        return 2
    # Threads that spin while they wait for each other slow themselves and what runs beside them (benchmarks/beside.py).
    # OpenMP reads this when torch is imported, here and in the processes that commands start.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return COMMANDS[words[0]](words[1:])


if __name__ == "__main__":
    sys.exit(main())
