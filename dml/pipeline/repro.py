"""The pipeline with independent stages side by side, for a machine with several cores.

    python -m dml repro --jobs 2

Each stage is `dvc repro --single-item` in a separate process, started when all stages that it depends on are done. So
DVC decides what runs, as in a plain `dvc repro`, which does the same work one stage after the other. After a failure
all goes on that does not depend on the failed stage.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Set

from dvc.exceptions import DvcException
from dvc.lock import Lock, LockError
from dvc.repo import Repo

from dml.common.files import ROOT
from dml.config.load import load
from dml.config.schema import ParamsError
from dml.pipeline.children import Children
from dml.pipeline.scheduling import Graph, dependents, in_order, most_needed_first
from dml.pipeline.shares import Shares, positive, shares_of

BUSY = "another process runs this pipeline; wait until it has ended, then start again"


def graph(repo: Repo) -> Graph:
    """Return the stages of dvc.yaml and what each depends on, in the order of the file."""
    found = repo.index.graph
    return {stage.addressing: {needed.addressing for needed in found.successors(stage)} for stage in found}


def outdated(stages: Graph, changed: Set[str]) -> Graph:
    """Return the stages that changed and all that depends on them; what else they depend on is done.

    Args:
        stages: all of them.
        changed: those of which a dependency, an output or the command is not what DVC has noted.
    """
    needed = set(changed).union(*(dependents(stages, stage) for stage in changed))
    return {stage: needs & needed for stage, needs in stages.items() if stage in needed}


def run(stage: str, shares: Shares, children: Children, say: Callable[[str], None]) -> int:
    """Let DVC run one stage, if it changed; pass on what it prints, and return the exit status.

    Args:
        stage: its name in dvc.yaml.
        shares: of the machine; its computations get one.
        children: DVC becomes one of them.
        say: receives each line, under the name of the stage.

    Raises:
        EndedError: the pipeline was told to end.
    """
    words = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    start = time.perf_counter()
    with (
        shares.one() as environment,
        children.start(
            words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        for line in process.stdout or ():
            if line.strip():
                say(f"{stage}: {line.rstrip()}")
        status = children.wait(process)
    if not status:
        say(f"{stage}: done in {time.perf_counter() - start:.0f} s")
    return status


def pipeline_lock() -> Lock:
    """Return the lock that `dml repro` and `dml study` hold as a context, since both make all that is missing.

    It is released when the process ends, killed or not. `dml train` and `dml attack` make one model or record each and
    run beside each other; do not start them on a model that a pipeline makes.
    """
    return Lock(os.path.join(Repo(str(ROOT)).tmp_dir, "dml-repro.lock"))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dml repro", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=positive, help="stages side by side; one per GPU, without a GPU one per core")
    chosen = parser.parse_args(arguments)
    try:
        jobs, shares = shares_of(chosen.jobs, load().run.devices)
        with pipeline_lock():
            return _run_outdated(Repo(str(ROOT)), jobs, shares)
    except ParamsError as error:
        print(f"ParamsError: {error}", file=sys.stderr)
    except LockError:
        print(BUSY, file=sys.stderr)
    except DvcException as error:
        print(f"DVC: {' '.join(str(error).split())}", file=sys.stderr)
    return 1


def _run_outdated(repo: Repo, jobs: int, shares: Shares) -> int:
    """Run what changed, and return the exit status."""
    lock = threading.Lock()

    def say(line: str) -> None:
        with lock:
            print(line, flush=True)

    stages = outdated(graph(repo), set(repo.status()))
    say(f"{len(stages)} stages to look at" if stages else "nothing has changed")
    with Children() as children:
        failed, left_out = in_order(most_needed_first(stages), lambda stage: run(stage, shares, children, say), jobs)
    for stage in failed:
        print(f"stage {stage} failed; its lines above say why", file=sys.stderr)
    if left_out:
        print(f"not run, as they depend on it: {', '.join(sorted(left_out))}", file=sys.stderr)
    return int(bool(failed))
