"""Both ways into the environment, `make` and conda, install the same."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from dml.api.suites import chosen
from dml.common.files import ROOT

CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]


def test_conda_installs_what_make_installs() -> None:
    (by_make,) = re.findall(r"-m pip install --quiet (.+)", MAKEFILE)
    (by_conda,) = (item["pip"] for item in CONDA if isinstance(item, dict))
    assert " ".join(by_conda) == by_make.replace("--editable", "-e").replace("'", "")


ALONE = """
import sys
sys.modules |= dict.fromkeys({names})  # as if they were not installed
import torch, dml
from dml.__main__ import main
images, labels = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
suite = {{"queries": 2, "attacks": {{"margin": {{"steps": 1}}}}, "gate_tries": 1}}
result = dml.evaluate(lambda images: images.flatten(1), images, labels, eps=0.1, suite=suite, report=lambda line: None)
result.save("report")
from dml.defenses.hardness import Hardness
from dml.losses.triplet import Triplet
assert main(["repro"]) == main(["notebook", "run", "a.ipynb", "b.ipynb"]) == 1
main(["evaluate", "--help"])
"""


def test_the_library_works_without_what_the_pipeline_needs(tmp_path: Path) -> None:
    names = [re.split("[^a-z]", item)[0] for item in PROJECT["optional-dependencies"]["pipeline"]]
    assert {"dvc", "papermill", "jupyterlab"} <= set(names)
    command = [sys.executable, "-W", "ignore", "-c", ALONE.format(names=names)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--gallery" in done.stdout
    assert "error: repro needs dvc; pip install -e '.[pipeline]' installs it\n" in done.stderr
    assert "error: notebook needs " in done.stderr


INSTALLED = """
import dml
from dml.__main__ import main
from dml.api.suites import chosen
print(dml.__file__)
print(chosen("quick", 8 / 255, 20, "linf"))
main(["train", "glyphs", "triplet", "robust"])
"""


def test_what_is_installed_without_its_clone_has_the_suites(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "dml", tmp_path / "dml", ignore=shutil.ignore_patterns("__pycache__"))  # a link as its file
    assert PYPROJECT["tool"]["setuptools"]["package-data"] == {"dml": ["params.yaml"]}
    command = [sys.executable, "-W", "ignore", "-P", "-c", INSTALLED]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    place, suite = done.stdout.splitlines()
    assert place == str(tmp_path / "dml" / "__init__.py")
    assert suite == str(chosen("quick", 8 / 255, 20, "linf"))
    assert "params.yaml cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_all_three_want_the_same_python() -> None:
    (version,) = re.findall(r"sys\.version_info < \((.+?)\)", MAKEFILE)
    least = ">=" + version.replace(", ", ".")
    assert PROJECT["requires-python"] == least
    assert f"python{least}" in CONDA
