"""Both ways into the environment, `make` and conda, install the same."""

import re
import tomllib

import yaml

from dml.common.files import ROOT

CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_conda_installs_what_make_installs() -> None:
    (by_make,) = re.findall(r"-m pip install --quiet (.+)", MAKEFILE)
    (by_conda,) = (item["pip"] for item in CONDA if isinstance(item, dict))
    assert " ".join(by_conda) == by_make.replace("--editable", "-e").replace("'", "")


def test_all_three_want_the_same_python() -> None:
    (version,) = re.findall(r"sys\.version_info < \((.+?)\)", MAKEFILE)
    least = ">=" + version.replace(", ", ".")
    assert PROJECT["requires-python"] == least
    assert f"python{least}" in CONDA
