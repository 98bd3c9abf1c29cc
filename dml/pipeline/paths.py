"""Where the pipeline keeps what it makes.

The pipeline writes below the project root. A notebook run by hand writes below ``scratch/`` and never disturbs what the
pipeline made; it reads its own earlier results first and the pipeline's otherwise.
"""

from pathlib import Path

from dml.common.files import ROOT

RECORDS = Path("results", "runs")  # the JSON of every run, of this machine and of others


def data_dir(dataset: str) -> Path:
    """Prepared arrays of a dataset, below a workspace."""
    return Path("artifacts", "data", dataset)


def run_name(loss: str, defense: str, seed: int) -> str:
    """Name of one model, for example ``triplet-robust-0``."""
    return f"{loss}-{defense}-{seed}"


def training_chapter(defense: str) -> str:
    """Name of the notebook that trains a defence."""
    return "02_standard_training" if defense == "standard" else "03_robust_training"


def model_dir(dataset: str, run: str) -> Path:
    """Weights, settings and history of one model, below a workspace."""
    return Path("artifacts", "models", dataset, run)


def times_file(dataset: str, run: str) -> Path:
    """Seconds that a training took: kept apart, so that no stage depends on them."""
    return Path("artifacts", "times", dataset, f"{run}.json")


def attack_dir(dataset: str, run: str, suite: str) -> Path:
    """Outcomes per query and adversarial examples of one model under one suite, below a workspace."""
    return Path("artifacts", "attacks", dataset, run, suite)


def record_file(dataset: str, run: str, suite: str) -> Path:
    """The JSON of one model under one suite that the tables are made from, below a workspace."""
    return RECORDS / dataset / run / f"{suite}.json"


def checkpoint_dir(workspace: str) -> Path:
    """State of unfinished work, to resume from; DVC never removes it."""
    return ROOT / ".checkpoints" / workspace


def output(workspace: str, path: Path) -> Path:
    """Where a notebook of ``workspace`` writes ``path``."""
    return ROOT / workspace / path


def candidates(workspace: str, path: Path) -> list[Path]:
    """Existing copies of ``path`` that a notebook of ``workspace`` may read: its own first, then the pipeline's."""
    places = dict.fromkeys([ROOT / workspace / path, ROOT / path])
    return [place for place in places if place.exists()]
