"""The whole pipeline at a tiny size, in a copy of the project: what runs, what is left, and what reruns."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from dml.common.files import ROOT

SKIPPED = shutil.ignore_patterns(
    ".git", ".venv", "artifacts", "scratch", ".notebooks", ".checkpoints", "cache", "tmp", "*_cache", ".hypothesis"
)
RUN = "triplet-robust-0"


def own_images(folder: str, names: list[str]) -> set[str]:
    """What a user put beside the built-in dataset: perhaps large, and not needed here."""
    return set(names) - {"README.md", "glyphs"} if Path(folder) == ROOT / "data" else set()


def command(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of this environment in the copy, whose own `dml` comes first on the path."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(project),
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, check=False)


def stages(done: subprocess.CompletedProcess[str]) -> set[str]:
    """The stages, without their matrix keys, that a `dvc repro` ran."""
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.split("'")[1].split("@")[0] for line in done.stdout.splitlines() if line.startswith("Running stage")}


def edit(project: Path, changes: dict[str, object]) -> None:
    """Change values of params.yaml by dotted key."""
    file = project / "params.yaml"
    settings = yaml.safe_load(file.read_text())
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = settings
        for parent in parents:
            place = place[parent]
        place[last] = value
    file.write_text(yaml.safe_dump(settings))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project after one `dvc repro`."""
    place = tmp_path_factory.mktemp("clone") / "project"
    shutil.copytree(ROOT, place, ignore=lambda folder, names: {*SKIPPED(folder, names), *own_images(folder, names)})
    shutil.rmtree(place / "results")
    (place / "dvc.lock").unlink(missing_ok=True)
    edit(
        place,
        {
            "run": {
                "datasets": ["glyphs"],
                "losses": ["triplet"],
                "defenses": ["robust"],
                "attacked": ["standard", "robust"],
                "surrogate": "robust",
                "surrogate_seed": 1,
                "suites": ["quick"],
                "seeds": [0],
                "standard_seeds": [0, 1],
            },
            "suites.quick": {
                "kind": "auto",
                "queries": 30,
                "eps": [0.01, "8/255"],
                "margin_steps": 3,
                "targets": 1,
                "targeted_steps": 2,
                "cross_entropy_steps": 0,
                "square_tries": 0,
                "compared": 3,
                "gate_tries": 5,
            },
            "recipes.glyphs.data.options": {"images_per_class": 8, "size": 32, "seed": 0},
            "recipes.glyphs.schedule": {"epochs": 2, "batches": 4, "classes": 10, "images_per_class": 4},
            "recipes.glyphs.validation.queries": 20,
            "recipes.glyphs.defenses.robust.steps": 2,
        },
    )
    assert command(place, "git", "init", "-q").returncode == 0
    ran = stages(command(place, "dvc", "repro"))
    assert ran == {"notebooks", "prepare", "train", "train_robust", "attack", "figures"}
    return place


def test_results_are_complete(project: Path) -> None:
    metrics = pd.read_csv(project / "results" / "metrics.csv")
    assert set(metrics["defense"]) == {"standard", "robust"}
    assert set(metrics["attack"]) == {"none", "margin", "worst"}
    assert (metrics["queries"] == 30).all()
    page = (project / "results" / "README.md").read_text()
    pictures = [line.split("](")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")]
    assert len(pictures) >= 4
    assert all((project / "results" / picture).exists() for picture in pictures)
    assert "Robust training gives at least 5 times" in page
    book = nbformat.read(next((project / "artifacts/notebooks/04_attack_evaluation").glob("*robust*")), as_version=4)
    assert any("image/png" in output.get("data", {}) for cell in book.cells for output in cell.get("outputs", []))


def test_the_example_of_the_readme_runs(project: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (project / "README.md").read_text(), re.DOTALL)
    done = command(project, sys.executable, "-c", example)
    assert re.fullmatch(r"\d+ of 20 queries stand\n", done.stdout), done.stderr


def test_nothing_runs_twice(project: Path) -> None:
    assert stages(command(project, "dvc", "repro")) == set()


def test_a_notebook_run_by_hand_reruns_nothing(project: Path) -> None:
    """From its own folder, as JupyterLab does: it writes below scratch/ and leaves outputs in the notebook."""
    tracked = project / "artifacts" / "models" / "glyphs" / RUN / "weights.safetensors"
    before = tracked.read_bytes()
    done = command(
        project,
        *("jupyter", "nbconvert", "--to", "notebook", "--execute", "--inplace", "notebooks/03_robust_training.ipynb"),
    )
    assert done.returncode == 0, done.stderr
    assert nbformat.read(project / "notebooks/03_robust_training.ipynb", as_version=4).cells[2].execution_count
    assert (project / "scratch" / "artifacts" / "models" / "glyphs" / RUN / "weights.safetensors").exists()
    assert tracked.read_bytes() == before
    assert stages(command(project, "dvc", "repro")) <= {"notebooks"}, "only the stripping itself looks again"


def test_changes_rerun_what_they_reach(project: Path) -> None:
    with (project / "dml" / "plots.py").open("a") as stream:
        stream.write("\n# a remark\n")
    assert stages(command(project, "dvc", "repro")) == {"figures"}
    edit(project, {"suites.quick.margin_steps": 4})
    ran = stages(command(project, "dvc", "repro"))
    assert ran == {"prepare", "attack", "figures"}, "the untrained histogram is attacked anew, nothing is trained"


def test_again_from_the_start_gives_the_same_metrics(project: Path) -> None:
    before = (project / "results" / "metrics.csv").read_bytes()
    ran = stages(command(project, "dvc", "repro", "--force"))
    assert ran == {"notebooks", "prepare", "train", "train_robust", "attack", "figures"}
    assert (project / "results" / "metrics.csv").read_bytes() == before


def test_a_wrong_setting_ends_its_stage_with_one_sentence(project: Path) -> None:
    kept = (project / "params.yaml").read_text()
    weights = project / "artifacts" / "models" / "glyphs" / RUN
    edit(project, {"recipes.glyphs.defenses.robust": {"eps": -0.1, "steps": 2}})
    done = command(project, "dvc", "repro")
    (project / "params.yaml").write_text(kept)
    assert done.returncode != 0
    said = [line for line in (done.stdout + done.stderr).splitlines() if "eps is -0.1" in line]
    assert said == ["ParamsError: params.yaml: recipes.glyphs.defenses.robust: eps is -0.1; it should be at least 0"]
    assert "Traceback" not in done.stdout + done.stderr
    assert not weights.exists(), "nothing half-written"
    assert stages(command(project, "dvc", "repro")) <= {"train_robust", "attack", "figures"}
    assert (weights / "weights.safetensors").exists(), "with the setting mended all goes on"
