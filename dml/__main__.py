"""The command line: `python -m dml COMMAND`.

attack       attack one model with one suite, in one process or under torchrun
carry        carry records over a change of code that changes no result, after making some again
check        check params.yaml, that its images exist, and that defences go with losses
datasets     download the benchmarks, check what is there, unpack archives of images
digests      write what the stages of the pipeline depend on
evaluate     attack any retrieval model on a folder of images, and write a report
join         write robust starts of several networks as one
leaderboard  add a model to the leaderboard, or check a claim that breaks one
notebook     strip notebooks, or run one with parameters
prepare      prepare the images of a dataset, and train nothing
pretrain     train a robust start that other recipes begin with
repro        run the pipeline, independent stages side by side
study        train and attack many defences, block by block
train        train one model, in one process or under torchrun
tune         compare settings on held-out training classes
"""

import os
import sys

from dml.common.memory import keep_freed
from dml.common.table import find

COMMANDS: dict[str, str] = {  # each takes the words after its name, and returns its exit status
    "attack": "dml.pipeline.attacking:main",
    "carry": "dml.pipeline.carry:main",
    "check": "dml.pipeline.checking:main",
    "datasets": "dml.data.commands:main",
    "digests": "dml.pipeline.stage_digests:main",
    "evaluate": "dml.api.command:main",
    "join": "dml.pipeline.join:main",
    "leaderboard": "dml.api.leaderboard.command:main",
    "notebook": "dml.pipeline.notebook:main",
    "prepare": "dml.pipeline.preparing:main",
    "pretrain": "dml.pipeline.pretrain:main",
    "repro": "dml.pipeline.repro:main",
    "study": "dml.pipeline.study:main",
    "train": "dml.pipeline.training:main",
    "tune": "dml.pipeline.tuning:main",
}
EXTRA = ("dvc", "nbformat", "papermill")  # packages that the library works without


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    asked = words[:1] in (["-h"], ["--help"])
    if not words or words[0] not in COMMANDS:
        unknown = f"error: unknown command {words[0]!r}\n\n" if words and not asked else ""
        print(f"{unknown}{__doc__}", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    # Threads that spin while they wait for each other slow themselves and what runs beside them (benchmarks/beside.py).
    # OpenMP reads this when torch is imported, here and in the processes that commands start.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed()
    try:
        return find(COMMANDS, words[0], "command")(words[1:])
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        print(f"error: {words[0]} needs {package}; pip install -e '.[pipeline]' installs it", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130  # what a shell gives for Ctrl-C


if __name__ == "__main__":
    sys.exit(main())
