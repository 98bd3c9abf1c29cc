"""The rooms of the library: which may import which, how large they are, and that everything public is documented."""

import ast
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dml.common.files import ROOT
from dml.pipeline.digest import imports

# A package imports from those after it and from itself, never from those before it.
# The pipeline and the api are two ways in: the api attacks any model, builds suites by config and draws by reporting.
ORDER = (
    "pipeline",
    "api",
    "reporting",
    "config",
    "evaluation",
    "training",
    "defenses",
    "attacks",
    "losses",
    "retrieval",
    "models",
    "data",
    "common",
)
FILES = sorted((ROOT / "dml").rglob("*.py"))
IDS = [str(file.relative_to(ROOT)) for file in FILES]


def test_the_order_names_every_package() -> None:
    assert {file.parent.name for file in (ROOT / "dml").glob("*/__init__.py")} == set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_imports_go_down(file: Path) -> None:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level], "a full name is found"
    parts = file.relative_to(ROOT).parts
    if len(parts) == 2:  # dml/__init__.py and dml/__main__.py: the front door
        return
    for module in imports(file):
        other = module.split(".")[1]
        assert ORDER.index(other) >= ORDER.index(parts[1]), f"{'/'.join(parts)} imports {module}"


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_modules_and_functions_are_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            text = node.body[0] if ast.get_docstring(node) else None
            told = text.end_lineno - text.lineno + 1 if text else 0
            assert node.end_lineno - node.lineno + 1 - told <= 60, f"{node.name}, without its docstring"


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_everything_public_has_a_docstring(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module"
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        assert ast.get_docstring(node), node.name
        for inner in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                assert ast.get_docstring(inner), f"{node.name}.{inner.name}"


def test_the_front_door_is_light() -> None:
    """`import dml` and the check of a command's name wait for no library."""
    code = "import sys, dml, dml.__main__; print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_wait_for_no_statistics() -> None:
    """A study has losses of pytorch-metric-learning, whose import of scipy.stats would take a second of each start."""
    code = (
        "import sys; from dml.config.load import load; load(); print([n for n in sys.modules if 'scipy.st' in n]);"
        "from pytorch_metric_learning.utils.common_functions import get_label_map, scipy;"
        "print('pytorch_metric_learning' in sys.modules, list(scipy.stats.rankdata([3, 1, 2])))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "[]", "none of its modules"
    assert done.stdout.splitlines()[1].startswith("True [")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc is told")
@pytest.mark.parametrize("given", [{}, {"MALLOC_TRIM_THRESHOLD_": "0"}])
def test_the_command_line_keeps_freed_memory(given: dict[str, str]) -> None:
    """Here and in a process that it starts. Arrays of four megabytes: beyond glibc's own threshold at the start."""
    count = (
        "import numpy as np, resource as r\n"
        "def faults():\n"
        "    before = r.getrusage(r.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(20): a, b = np.ones(2**19), np.ones(2**19); del a, b\n"
        "    return r.getrusage(r.RUSAGE_SELF).ru_minflt - before\n"
        "faults(); print(faults())"
    )
    code = (
        "import subprocess, sys, dml.__main__ as door\n"
        f"def work(words):\n    exec({count!r}, globals()); sys.stdout.flush()\n"
        f"    subprocess.run([sys.executable, '-c', {count!r}], check=True)\n"
        "door.find = lambda *name: work\ndoor.main(['check'])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | given
    environment["NUMPY_MADVISE_HUGEPAGE"] = "0"  # huge pages fault less often
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    few = [int(line) < 1_000 for line in done.stdout.split()]
    assert few == [not given] * 2, done


def test_threads_sleep_while_they_wait() -> None:
    code = (
        "import os, dml.__main__ as door; door.find = lambda *name: lambda words: print(os.environ['OMP_WAIT_POLICY'])"
    )
    for given, told in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
        words = [sys.executable, "-c", f"{code}; door.main(['check'])"]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == told
