"""The whole pipeline at a tiny size, in a copy of the project: what runs, what is left, and what reruns."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from dml.common.files import ROOT

MADE = (".git", ".venv", "artifacts", "scratch", ".notebooks", ".digests", ".checkpoints", ".hypothesis")
SKIPPED = shutil.ignore_patterns(*MADE, "cache", "tmp", "*_cache")
RUN = "triplet-robust-0"
WEIGHTS = "weights.safetensors"
DIGESTS = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["digests"]["cmd"]
ALL = {"digests", "prepare", "train", "surrogate", "train_robust", "attack", "control", "dependence", "figures"}


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
    """The stages, without their matrix keys, that a `dvc repro` or `python -m dml repro` ran."""
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.split("'")[1].split("@")[0] for line in done.stdout.splitlines() if "Running stage '" in line}


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
    """A tiny project after one run of the pipeline, stages side by side."""
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
                "controls": ["pixels_8"],
                "surrogate": "robust",
                "surrogate_seed": 1,
                "suites": ["quick"],
                "seeds": [0],
            },
            "suites.quick": {
                "kind": "attacks",
                "claims": True,
                "queries": 30,
                "eps": [0.01, "8/255"],
                "attacks": {"margin": {"steps": 3}, "targeted": {"classes": 1, "steps": 2}},
                "gate_tries": 5,
            },
            "recipes.glyphs.data.options": {"images_per_class": 8, "size": 32, "seed": 0},
            "recipes.glyphs.schedule": {"epochs": 2, "batches": 4, "classes": 10, "images_per_class": 4},
            "recipes.glyphs.validation.queries": 20,
            "recipes.glyphs.defenses.robust.steps": 2,
        },
    )
    chapter = place / "notebooks" / "06_dependence.ipynb"
    text = chapter.read_text()
    chapter.write_text(text.replace("batches = 6", "batches = 2").replace("seeds = [0, 1]", "seeds = [0]"))
    for words in (("init", "-q"), ("add", "."), ("-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "tiny")):
        assert command(place, "git", *words).returncode == 0
    assert stages(command(place, sys.executable, "-m", "dml", "repro", "--jobs", "2")) == ALL
    return place


def test_results_are_complete(project: Path) -> None:
    metrics = pd.read_csv(project / "results" / "metrics.csv")
    assert set(metrics["defense"]) == {"standard", "robust", "pixels_8"}
    assert set(metrics.loc[metrics["loss"] == "none", "defense"]) == {"pixels_8"}
    assert set(metrics["attack"]) == {"none", "margin", "worst", "certified"}
    assert (metrics["queries"] == 30).all()
    pages = [project / "results" / "README.md", project / "results" / "pages" / "glyphs.md"]
    for page in pages:
        links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
        assert links
        assert all((page.parent / link).exists() for link in links), page
    assert len(list((project / "results" / "figures" / "glyphs").glob("*.png"))) >= 4
    assert "5 times" in pages[0].read_text()
    book = nbformat.read(next((project / "artifacts/notebooks/04_attack_evaluation").glob("*robust*")), as_version=4)
    assert any("image/png" in output.get("data", {}) for cell in book.cells for output in cell.get("outputs", []))


def test_a_record_says_what_was_attacked(project: Path) -> None:
    record = json.loads((project / f"results/runs/glyphs/{RUN}/quick.json").read_text())
    stored = json.loads((project / f"artifacts/models/glyphs/{RUN}/settings.json").read_text())
    assert record["settings"] == {**stored["settings"], "suite": record["settings"]["suite"]}
    assert record["digests"]["training"] == stored["digest"]
    assert list(record["surrogates"]) == ["triplet-standard-0", "triplet-standard-1"]
    other = json.loads((project / "results/runs/glyphs/triplet-standard-0/quick.json").read_text())
    assert record["surrogates"]["triplet-standard-0"] == other["weights"]
    assert other["surrogates"][RUN] == record["weights"]
    assert "surrogates" not in json.loads((project / "results/runs/glyphs/none-pixels_8-0/quick.json").read_text())
    machine = json.loads((project / f"results/runs/glyphs/{RUN}/quick.machine.json").read_text())
    assert machine["seconds"]["training"] > 0
    assert machine["device"].endswith(torch.backends.cpu.get_cpu_capability())


def test_the_example_of_the_readme_runs(project: Path) -> None:
    example, *_ = re.findall(r"```python\n(.*?)```", (project / "README.md").read_text(), re.DOTALL)
    done = command(project, sys.executable, "-c", example)
    assert "At 8/255 your model keeps" in done.stdout, done.stderr


def test_the_example_of_the_readme_takes_a_model_of_timm(project: Path) -> None:
    """Its weights are a package of the environment."""
    example, *_ = re.findall(r"```python\n(.*?)```", (project / "README.md").read_text(), re.DOTALL)
    model = "artifacts/models/glyphs/triplet-robust-0"
    assert example.count(model) == 1
    done = command(project, sys.executable, "-c", example.replace(model, "timm:tf_efficientnet_lite0"))
    assert "At 8/255 your model keeps" in done.stdout, done.stderr


def test_nothing_runs_twice(project: Path) -> None:
    assert stages(command(project, "dvc", "repro")) == set()


def test_a_failing_stage_is_named_and_stops_what_depends_on_it(project: Path) -> None:
    raw = project / "data" / "glyphs" / "glyphs.json"
    kept = raw.read_bytes()
    raw.write_text("{")
    done = command(project, sys.executable, "-m", "dml", "repro", "--jobs", "2")
    raw.write_bytes(kept)
    assert done.returncode == 1
    assert "stage prepare@glyphs failed; its lines above say why" in done.stderr
    (left_out,) = [line for line in done.stderr.splitlines() if line.startswith("not run, as they depend on it: ")]
    assert {"figures", "attack@glyphs-triplet-robust-0-quick", "train@glyphs-triplet-0"} < set(
        left_out.removeprefix("not run, as they depend on it: ").split(", ")
    )
    assert "figures:" not in done.stdout
    assert stages(command(project, "dvc", "repro")) == {"prepare"}, "the same images as before: nothing else runs"


def test_a_wrong_setting_is_told_before_any_stage(project: Path) -> None:
    kept = (project / "params.yaml").read_text()
    edit(project, {"recipes.glyphs.defenses.robust": {"eps": -0.1, "steps": 2}})
    done = command(project, sys.executable, "-m", "dml", "repro")
    (project / "params.yaml").write_text(kept)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "ParamsError: params.yaml: recipes.glyphs.defenses.robust.eps is -0.1; it must be at least 0\n"
    )


def test_records_follow_a_change_of_code_that_changes_no_result(project: Path) -> None:
    """Training and attack are done again, in scratch, and give the same weights, rows and outcomes."""
    file = project / f"results/runs/glyphs/{RUN}/quick.json"
    code = project / "dml" / "models" / "embedder.py"
    made = [*(project / "results/runs").rglob("*.json"), *(project / "artifacts/models").rglob("settings.json")]
    kept, text = {name: name.read_bytes() for name in made}, code.read_text()
    code.write_text(text + "\nEXTRA = 1\n")
    done = command(project, sys.executable, "-m", "dml", "carry", "glyphs", "quick", RUN)
    assert done.returncode == 0, done.stderr
    assert f"{RUN}: the same weights, rows and outcomes" in done.stdout
    assert f"{RUN}: carried over, with its model" in done.stdout
    old, new = json.loads(kept[file]), json.loads(file.read_text())
    assert new["carried"] == [RUN]
    assert all(old["digests"][name] != new["digests"][name] for name in old["digests"])
    assert all(old[name] == new[name] for name in old if name != "digests")
    made_with = json.loads((project / f"artifacts/models/glyphs/{RUN}/settings.json").read_text())
    assert made_with["digest"] == new["digests"]["training"]
    for name, value in kept.items():
        name.write_bytes(value)
    code.write_text(text.replace(".float(), dim=1)", ".float() + 0.01, dim=1)"))
    done = command(project, sys.executable, "-m", "dml", "carry", "glyphs", "quick", RUN)
    code.write_text(text)
    assert done.returncode == 1
    assert f"{RUN} came out differently, so nothing is carried over: " in done.stderr
    assert all(name.read_bytes() == value for name, value in kept.items())


def test_records_follow_where_earlier_code_makes_the_same_on_this_machine(project: Path) -> None:
    """Two shortened trainings, by the code of the last commit and by that of today."""
    file = project / f"results/runs/glyphs/{RUN}/quick.json"
    code = project / "dml" / "models" / "embedder.py"
    made = [*(project / "results/runs").rglob("*.json"), *(project / "artifacts/models").rglob("settings.json")]
    kept, text = {name: name.read_bytes() for name in made}, code.read_text()
    words = ("carry", "glyphs", "quick", RUN, "--beside", "HEAD", "--changes", "{recipes.glyphs.schedule.epochs: 1}")
    commit = command(project, "git", "rev-parse", "--short", "HEAD").stdout.strip()
    code.write_text(text + "\nEXTRA = 1\n")
    done = command(project, sys.executable, "-m", "dml", *words)
    code.write_text(text)
    carried = json.loads(file.read_text())
    for name, value in kept.items():
        name.write_bytes(value)
    assert done.returncode == 0, done.stderr
    assert carried["carried"] == [f"{RUN} beside {commit} with {{recipes.glyphs.schedule.epochs: 1}}"]
    assert carried["digests"] != json.loads(kept[file])["digests"]


def test_a_notebook_run_by_hand_reruns_nothing(project: Path) -> None:
    """From its own folder, as JupyterLab does: it writes below scratch/ and leaves outputs in the notebook."""
    tracked = project / "artifacts" / "models" / "glyphs" / RUN / WEIGHTS
    before = tracked.read_bytes()
    done = command(
        project,
        *("jupyter", "nbconvert", "--to", "notebook", "--execute", "--inplace", "notebooks/03_robust_training.ipynb"),
    )
    assert done.returncode == 0, done.stderr
    assert nbformat.read(project / "notebooks/03_robust_training.ipynb", as_version=4).cells[2].execution_count
    assert (project / "scratch" / "artifacts" / "models" / "glyphs" / RUN / WEIGHTS).exists()
    assert tracked.read_bytes() == before
    assert stages(command(project, "dvc", "repro")) <= {"digests"}, "only the first stage looks again"


def test_a_model_of_scratch_does_not_shadow_the_pipelines(project: Path) -> None:
    """Trained by hand with other settings: attacked under those, and never under those of params.yaml."""
    other = "{recipes.glyphs.schedule.epochs: 1}"
    by_hand = ("python", "-m", "dml", "notebook", "run")
    train = (*by_hand, "notebooks/03_robust_training.ipynb", "scratch/03.ipynb")
    attack = (*by_hand, "notebooks/04_attack_evaluation.ipynb", "scratch/04.ipynb", "-p", "defense", "robust")
    assert command(project, *train, "-p", "changes", other).returncode == 0
    record = project / "scratch" / "results" / "runs" / "glyphs" / RUN / "quick.json"
    for changes, epochs in (("{}", 2), (other, 1)):
        done = command(project, *attack, "-p", "changes", changes)
        assert done.returncode == 0, done.stderr
        assert json.loads(record.read_text())["settings"]["schedule"]["epochs"] == epochs
    refused = command(project, *attack, "-p", "changes", "{recipes.glyphs.schedule.epochs: 9}")
    assert refused.returncode == 1
    assert "schedule.epochs is 2, not 9" in refused.stderr + refused.stdout


def test_a_trained_recipe_becomes_the_start_of_others(project: Path) -> None:
    """A model of the pipeline is exported, rounded to half precision; one that is not there is trained first."""
    models = project / "artifacts" / "models" / "glyphs"
    for seed in (0, 7):
        words = ("pretrain", "glyphs", "triplet", "robust", f"scratch/{seed}.safetensors", "--seed", str(seed))
        done = command(project, sys.executable, "-m", "dml", *words)
        assert done.returncode == 0, done.stderr
        assert ("epoch 1/2" in done.stdout) == (seed == 7)
        made = json.loads((project / f"scratch/{seed}.json").read_text())
        assert (made["seed"], made["images"]["dataset"], len(made["epochs"])) == (seed, "glyphs", 2)
        start, whole = (
            load_file(project / f"scratch/{seed}.safetensors"),
            load_file(models / f"triplet-robust-{seed}" / WEIGHTS),
        )
        for name, value in start.items():
            assert torch.equal(value, whole[f"backbone.{name}"].to(torch.half if value.dim() > 1 else value.dtype))
    shutil.rmtree(models / "triplet-robust-7")


CODE = "\nEXTRA = 1\n"
CHANGES = [  # files -> what is appended to them, replaced or set, and the stages that this reruns first
    (
        {
            "dml/reporting/plots.py": "\n# a remark\n",
            "notebooks/03_robust_training.ipynb": ("# 3. Robust training", "# 3. Training"),
        },
        set(),
    ),
    ({"dml/losses/triplet.py": CODE}, {"train", "surrogate", "train_robust", "dependence", "figures"}),
    ({"dml/losses/contrastive.py": CODE}, {"dependence", "figures"}),
    ({"dml/losses/miners/semi_hard.py": CODE}, {"dependence"}),
    ({"dml/defenses/robust.py": CODE}, {"train_robust", "dependence", "figures"}),
    ({"dml/attacks/queries/targeted.py": CODE}, {"attack", "control", "figures"}),
    ({"params.yaml": {"suites.quick.attacks.margin.steps": 4}}, {"attack", "control", "figures"}),
    ({"dml/pipeline/recording.py": CODE}, {"attack", "control"}),
    ({"pretrained/grid4.safetensors": CODE}, {"figures"}),
]


@pytest.mark.parametrize(("edits", "expected"), CHANGES, ids=["+".join(edits) for edits, _ in CHANGES])
def test_a_change_reruns_what_uses_it(project: Path, edits: dict[str, object], expected: set[str]) -> None:
    """What nothing here uses may still make records of other runs stale, so the tables are looked at again."""
    kept = {file: (project / file).read_bytes() for file in edits}
    for file, change in edits.items():
        if isinstance(change, dict):
            edit(project, change)
        elif isinstance(change, tuple):
            (project / file).write_text(kept[file].decode().replace(*change))
        else:
            (project / file).write_bytes(kept[file] + change.encode())
    assert command(project, "sh", "-c", DIGESTS).returncode == 0, "as the first stage does"
    told = json.loads(command(project, "dvc", "status", "--json").stdout)
    for file, content in kept.items():
        (project / file).write_bytes(content)
    assert {name.split("@")[0] for name in told} - {"data.dvc", "digests"} == expected


def test_adding_md_says_what_a_change_reruns() -> None:
    _, section = (ROOT / "ADDING.md").read_text(encoding="utf-8").split("## Which stages run again\n")
    rows = re.findall(r"^\| [^|]+ \| `(\S+)` \| ([^|;]+).* \|$", section.split("\n## ")[0], re.MULTILINE)
    told = {file: set(stages.strip().split(", ")) - {"none"} for file, stages in rows}
    assert told == {file: stages for edits, stages in CHANGES for file in edits}


def test_again_from_the_start_gives_the_same_bytes(project: Path) -> None:
    """Results, records, lock and executed notebooks: all but times and device."""

    def kept() -> dict[str, bytes]:
        files = [*(project / "results").rglob("*"), *(project / "artifacts/notebooks").rglob("*"), project / "dvc.lock"]
        told = ("machine.json", "provenance.json", "cost.md")
        return {str(file): file.read_bytes() for file in files if file.is_file() and not file.name.endswith(told)}

    assert stages(command(project, "dvc", "repro")) <= {"digests"}
    before = kept()
    for stage in ("prepare@glyphs", f"train_robust@glyphs-{RUN}", f"attack@glyphs-{RUN}-quick", "figures"):
        assert stages(command(project, "dvc", "repro", "--force", "--single-item", stage)) == {stage.split("@")[0]}
    after = kept()
    assert [name for name in before if after.get(name) != before[name]] == []


def test_a_wrong_setting_ends_with_one_sentence(project: Path) -> None:
    kept = (project / "params.yaml").read_text()
    weights = project / "artifacts" / "models" / "glyphs" / RUN / WEIGHTS
    edit(project, {"recipes.glyphs.defenses.robust": {"eps": -0.1, "steps": 2}})
    done = command(project, "dvc", "repro")
    (project / "params.yaml").write_text(kept)
    assert done.returncode != 0
    said = [line for line in (done.stdout + done.stderr).splitlines() if "eps is -0.1" in line]
    assert said == ["ParamsError: params.yaml: recipes.glyphs.defenses.robust.eps is -0.1; it must be at least 0"]
    assert "Traceback" not in done.stdout + done.stderr
    assert stages(command(project, "dvc", "repro")) <= {"digests"}
    assert weights.exists(), "the first stage refuses it, and nothing is lost"


def test_more_queries_than_images_are_refused_before_training(project: Path) -> None:
    kept = (project / "params.yaml").read_text()
    edit(project, {"suites.quick.queries": 999_999, "recipes.glyphs.schedule.epochs": 3})
    done = command(project, "dvc", "repro")
    (project / "params.yaml").write_text(kept)
    assert done.returncode != 0
    assert "suites.quick.queries is 999,999; glyphs has 800 test images" in done.stdout + done.stderr
    assert "epoch 1" not in done.stdout


def test_a_failing_last_stage_leaves_the_results(project: Path) -> None:
    kept = {file: file.read_bytes() for file in (project / "results").rglob("*") if file.is_file()}
    broken = project / "results/runs/glyphs/broken.json"
    broken.write_text("{")
    assert command(project, "dvc", "repro").returncode != 0
    broken.unlink()
    assert {file: file.read_bytes() for file in kept if file.exists()} == kept
