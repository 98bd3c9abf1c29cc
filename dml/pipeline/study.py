"""Many defences, each block under one suite: trains and attacks what params.yaml lists under ``study``.

    python -m dml study --jobs 2
    python -m dml study grid

The first runs all blocks in order, the second one of them. Each job is a notebook of the pipeline in a process of its
own; it starts when what it needs is there and a place is free. A record that today's settings and code would make again
is not made twice, whichever block asks for it, and only what a missing record needs is trained: a killed study
continues where it was, and one whose records are all there ends at once. Remove records from results/runs to make them
again. Where raw images are not there, the records of their dataset are left out. Chapter 5 then puts the records into
results/: `make study` runs it, and no other stage of the pipeline, which would train again what DVC has not trained
itself. Chapter 6 takes models of the pipeline, too: `make repro` renews it.
"""

import argparse
import itertools
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dvc.exceptions import DvcException
from dvc.lock import LockError

from dml.common.files import ROOT
from dml.config.load import load
from dml.config.run import Params, Study
from dml.pipeline import paths
from dml.pipeline.checking import check_defenses, in_float32
from dml.pipeline.children import Children
from dml.pipeline.digest import data_settings, expected, training_digest
from dml.pipeline.preparing import TORCHVISION, changed
from dml.pipeline.repro import BUSY, pipeline_lock
from dml.pipeline.scheduling import in_order
from dml.pipeline.shares import Shares, positive, shares_of
from dml.pipeline.stored import SETTINGS
from dml.reporting.spelling import CONTROL


class Model(NamedTuple):
    """A trained model or a control."""

    dataset: str
    loss: str
    defense: str
    seed: int


@dataclass(frozen=True)
class Job:
    """One notebook with its parameters.

    Attributes:
        notebook: its name without the ending.
        name: of the executed copy.
        parameters: of the notebook.
    """

    notebook: str
    name: str
    parameters: dict[str, str]

    @property
    def title(self) -> str:
        """What it is called in a study."""
        return f"{self.notebook} {self.name}"

    def run(self, shares: Shares, children: Children) -> tuple[int, float, Path]:
        """Execute the notebook on a share of the machine.

        Returns:
            Its exit status, the seconds it took, and the log of what it printed.

        Raises:
            EndedError: the study was told to end.
        """
        target = Path("artifacts", "notebooks", self.notebook, f"{self.name}.ipynb")
        log = ROOT / "artifacts" / "logs" / self.notebook / f"{self.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "dml", "notebook", "run", f"notebooks/{self.notebook}.ipynb", str(target)]
        for name, value in ({"workspace": "."} | self.parameters).items():
            words += ["-p", name, value]
        start = time.perf_counter()
        with log.open("w", encoding="utf-8") as stream, shares.one() as environment:
            process = children.start(words, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)
            status = children.wait(process)
        return status, time.perf_counter() - start, log


def models(params: Params, block: Study) -> list[Model]:
    """Return the models and controls that a block attacks, first seed first."""
    return [
        Model(dataset, loss, defense, seed)
        for seed in block.seeds
        for dataset in block.datasets
        for loss, defenses in [*block.losses.items(), (CONTROL, params.run.controls if seed == block.seeds[0] else [])]
        for defense in defenses
    ]


def lacking(params: Params, block: Study) -> list[Model]:
    """Return the models and controls of a block without a current record."""
    return [model for model in models(params, block) if not evaluated(params, model, block.suite)]


def has_source(params: Params, dataset: str) -> bool:
    """Whether the images of a dataset are prepared, or can be: they are there, or torchvision downloads them."""
    data = params.recipe(dataset).data
    return _has(params, dataset) or data.source == TORCHVISION or (ROOT / data.path).exists()


def without_images(params: Params, blocks: Iterable[Study]) -> list[str]:
    """Return one sentence per dataset that lacks records and has no images to make them from."""
    wanted = Counter(model.dataset for block in blocks for model in lacking(params, block))
    return [
        f"{dataset}: {params.recipe(dataset).data.path} is not there, so that {count} records are left out; "
        "data/README.md says where its images come from"
        for dataset, count in wanted.items()
        if not has_source(params, dataset)
    ]


def trainings(params: Params, attacked: list[Model]) -> list[Model]:
    """Return the trainings that these models need, those of the surrogates included, which the gates use."""
    run = params.run
    found: dict[Model, None] = {}
    for model in attacked:
        if model.loss != CONTROL:
            found[model] = None
            for loss, defense, seed in (
                (model.loss, "standard", model.seed),
                (model.loss, params.surrogate(model.dataset, model.loss), model.seed),
                (run.losses[0], "standard", run.surrogate_seed),
            ):
                found[Model(model.dataset, loss, defense, seed)] = None
    return list(found)


def plan(params: Params, blocks: Iterable[Study]) -> dict[str, tuple[Job, set[str]]]:
    """Return whatever missing records want, by title, each job with the titles of those that it needs first.

    Blocks follow each other, and in a block seeds: the trainings of one, then its attacks.
    """
    found: dict[str, tuple[Job, set[str]]] = {}

    def add(job: Job, needs: Iterable[Job]) -> None:
        found.setdefault(job.title, (job, {other.title for other in needs} & found.keys()))

    for block in blocks:
        missing = [model for model in lacking(params, block) if has_source(params, model.dataset)]
        for dataset in dict.fromkeys(model.dataset for model in missing):
            data = params.recipe(dataset).data
            if not _has(params, dataset) or changed(data, ROOT / paths.data_dir(dataset)):
                add(_images(dataset), [])
        for seed in block.seeds:
            own = [model for model in missing if model.seed == seed]
            for model in trainings(params, own):
                if not trained(params, model):
                    add(_training(model), [_images(model.dataset)])
            for model in own:
                add(_attack(model, block.suite), [_images(model.dataset), *map(_training, trainings(params, [model]))])
    return found


def _images(dataset: str) -> Job:
    return Job("01_data", dataset, {"dataset": dataset})


def _training(model: Model) -> Job:
    parameters = {"dataset": model.dataset, "loss": model.loss, "seed": str(model.seed)}
    if model.defense != "standard":
        parameters["defense"] = model.defense
    return Job(paths.training_chapter(model.defense), f"{model.dataset}-{paths.run_name(*model[1:])}", parameters)


def _attack(model: Model, suite: str) -> Job:
    parameters = {name: str(value) for name, value in model._asdict().items()} | {"suite": suite}
    return Job("04_attack_evaluation", f"{model.dataset}-{paths.run_name(*model[1:])}-{suite}", parameters)


def _has(params: Params, dataset: str) -> bool:
    wanted = json.loads(json.dumps(data_settings(params.recipe(dataset).data)))
    return _stored(ROOT / paths.data_dir(dataset) / SETTINGS).get("settings") == wanted


def trained(params: Params, model: Model) -> bool:
    """Whether today's settings and code would make the stored model again."""
    stored = _stored(ROOT / paths.model_dir(model.dataset, paths.run_name(*model[1:])) / SETTINGS)
    return stored.get("digest") == training_digest(params.recipe(model.dataset), model.loss, model.defense)


def evaluated(params: Params, model: Model, suite: str) -> bool:
    """Whether today's settings and code would make the stored record again."""
    stored = _stored(ROOT / paths.record_file(model.dataset, paths.run_name(*model[1:]), suite))
    key = (model.dataset, model.loss, model.defense, suite)
    return stored.get("digests", ()) == expected(params, [key])[key]


def _stored(file: Path) -> dict[str, Any]:
    """The keys of a JSON file; none if it is not there or is damaged, so that it is made again."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def run(params: Params, blocks: Iterable[Study], jobs: int, shares: Shares) -> int:
    """Run what some blocks lack, print one line per finished job, and return how many jobs were not done."""
    planned, start, finished = plan(params, blocks), time.perf_counter(), itertools.count(1)
    lock = threading.Lock()

    def work(title: str) -> int:
        status, seconds, log = planned[title][0].run(shares, children)
        with lock:
            number = next(finished)
            left = (time.perf_counter() - start) / number * (len(planned) - number) / 60
            note = f"FAILED, see {log.relative_to(ROOT)}" if status else f"{seconds:.0f} s"
            print(f"{number}/{len(planned)} {title}: {note}, {left:.0f} min left", flush=True)
        return status

    with Children() as children:
        failed, left_out = in_order({title: needs for title, (_, needs) in planned.items()}, work, jobs)
    if left_out:
        print(f"not done, as they need what failed: {', '.join(sorted(left_out))}", flush=True)
    return len(failed) + len(left_out)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m dml study", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("blocks", nargs="*", metavar="BLOCK", help="of `study` in params.yaml; all if none is named")
    parser.add_argument("--jobs", type=positive, help="notebooks side by side; one per GPU, without a GPU one per core")
    chosen = parser.parse_args(arguments)
    try:
        params = load()
        jobs, shares = shares_of(chosen.jobs, params.run.devices)
        blocks = [params.block(name) for name in chosen.blocks or params.study]
        datasets = dict.fromkeys(name for block in blocks for name in block.datasets)
        for block in blocks:
            for dataset, (loss, defenses) in itertools.product(block.datasets, block.losses.items()):
                check_defenses(params, dataset, loss, defenses)
        for sentence in in_float32(params, datasets, dict.fromkeys(block.suite for block in blocks)):
            print(sentence, file=sys.stderr)
        for sentence in without_images(params, blocks):
            print(sentence, file=sys.stderr)
        with pipeline_lock():
            return int(run(params, blocks, jobs, shares) > 0)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    except LockError:
        print(BUSY, file=sys.stderr)
    except DvcException as error:
        print(f"DVC: {' '.join(str(error).split())}", file=sys.stderr)
    return 1
