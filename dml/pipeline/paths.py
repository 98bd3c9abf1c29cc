"""The project's folders, found from the package itself, so that a notebook runs from any folder.

The pipeline writes below the project root. A notebook run by hand writes below ``scratch/`` instead and
never disturbs what the pipeline made; what it needs it takes from its own earlier results first and from
the pipeline's otherwise.
"""

from pathlib import Path

from dml.common.files import ROOT

PARAMS = ROOT / "params.yaml"
RECORDS = Path("results", "runs")  # the JSON of every run, the pipeline's and those brought from other machines


def data_dir(dataset: str) -> Path:
    """Prepared arrays of a dataset, below a workspace."""
    return Path("artifacts", "data", dataset)


def baselines_file(dataset: str) -> Path:
    """What retrieval without learning scores on a dataset, below a workspace."""
    return Path("artifacts", "baselines", f"{dataset}.json")


def run_name(loss: str, defense: str, seed: int) -> str:
    """Name of one trained model, for example ``triplet-robust-0``."""
    return f"{loss}-{defense}-{seed}"


def model_dir(dataset: str, run: str) -> Path:
    """Weights and training history of one run, below a workspace."""
    return Path("artifacts", "models", dataset, run)


def attack_dir(dataset: str, run: str, suite: str) -> Path:
    """Per-query outcomes and adversarial examples of one run under one suite, below a workspace."""
    return Path("artifacts", "attacks", dataset, run, suite)


def record_file(dataset: str, run: str, suite: str) -> Path:
    """The small JSON of one run under one suite that metrics.csv is built from, below a workspace."""
    return RECORDS / dataset / run / f"{suite}.json"


def output(workspace: str, path: Path) -> Path:
    """Where a notebook of ``workspace`` writes ``path``."""
    return ROOT / workspace / path


def find(workspace: str, path: Path, made_by: str) -> Path:
    """Where a notebook of ``workspace`` reads ``path``: its own copy first, else the pipeline's.

    Raises:
        FileNotFoundError: neither exists; the sentence says which notebook makes it.
    """
    for place in (ROOT / workspace / path, ROOT / path):
        if place.exists():
            return place
    raise FileNotFoundError(f"{path} is not there yet: run notebook {made_by} or `make repro` first")
