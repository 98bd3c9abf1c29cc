"""What each stage depends on, and what reruns nothing."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from dml.common.files import ROOT
from dml.config.load import load
from dml.pipeline import digest

STAGES = sorted(file.stem for file in (ROOT / "dml/pipeline/stages").glob("*.py") if file.stem != "__init__")


def test_text_is_not_code() -> None:
    plain = "def f(x: int) -> int:\n    return x + 1\n"
    told = '"""About."""\n\n\n# why\ndef f(x: int) -> int:  # here\n    """Adds one."""\n\n    return x + 1\n'
    assert digest.bare(told) == digest.bare(plain)
    assert digest.bare(plain.replace("1", "2")) != digest.bare(plain)
    assert digest.bare("x = '# no comment'\n") == "x = '# no comment'"


def test_imports_are_found_at_any_depth(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        "import dml.common.checks\nfrom dml.losses import mining, LOSSES\nfrom dml.attacks.balls import Linf\n"
        "def f():\n    from dml.common.files import ROOT\n"
    )
    found = ["dml.common.checks", "dml.losses.mining", "dml.attacks.balls", "dml.common.files"]
    assert list(digest.imports(file)) == found, "a package's table is not a dependency; the entry that is used is"


def reached(names: list[str]) -> set[str]:
    """The modules that some modules reach without passing through one that decides nothing, read with a plain grep."""
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        text = (ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8")
        for package, items in re.findall(r"^\s*from (dml[\w.]*) import (\([^)]*\)|.+)$", text, re.MULTILINE):
            for item in re.findall(r"\w+", re.sub(r"\bas \w+|#.*", "", items)):
                for other in (f"{package}.{item}", package):
                    if (ROOT / f"{other.replace('.', '/')}.py").exists() and not other.startswith(digest.NEUTRAL):
                        waiting |= {other} - found
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_that_its_notebook_reaches(stage: str) -> None:
    """But for packages' tables, of which the used entry counts, and for modules that decide no result."""
    params = load()
    recipe = params.recipe("glyphs")
    source, backbone = "dml.data.sources.glyphs", "dml.models.backbones.conv4"
    attacks = ["dml.evaluation.suites.attacks", "dml.attacks.queries.soft_margin"]
    shown = [f"dml.reporting.{file.stem}" for file in (ROOT / "dml/reporting").glob("[a-z]*.py")]
    stages = "dml.pipeline.stages."
    names = ("dependence", "records", "sections", "spelling", "style", "tables")
    chapter = [f"dml.reporting.{name}" for name in names]
    expected = {
        "prepare": [stages + "prepare", source],
        "train": [stages + "train", stages + "prepare", source, backbone, "dml.losses.triplet", "dml.defenses.robust"],
        "attack": [stages + "attack", stages + "prepare", source, backbone, *attacks],
        "figures": [stages + "figures", *shown],
        "dependence": [stages + "dependence", backbone, "dml.losses.triplet", "dml.defenses.robust", *chapter],
    }[stage]
    code = {
        "prepare": lambda: digest.prepare_code(recipe.data),
        "train": lambda: digest.training_code(recipe, "triplet", "robust"),
        "attack": lambda: digest.evaluation_code(recipe, params.suites["quick"]),
        "figures": lambda: digest.figures_code(),
        "dependence": lambda: digest.dependence_code(params),
    }[stage]()
    assert set(code) == reached(expected)


def test_a_table_holds_names_alone() -> None:
    """A package's `__init__.py` is a dependency of no stage, so it may hold nothing that decides a result.

    The front door, dml/__init__.py, also holds the function that imports dml.api at first use; no stage does.
    """
    for file in (ROOT / "dml").glob("*/**/__init__.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_table = isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict | ast.Constant)
            assert is_text or is_table, f"{file}: line {node.lineno}"


def test_the_pipeline_depends_on_the_digests() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert stages.pop("digests")["deps"] == ["notebooks", "dml"]
    for name, stage in stages.items():
        assert stage["deps"][0].startswith(".digests/"), name
        assert not any(str(dep).startswith("dml") for dep in stage["deps"]), name


def test_settings_and_code_change_the_digest_and_the_seed_does_not() -> None:
    recipe = load().recipe("glyphs")
    same = digest.training_digest(recipe, "triplet", "robust")
    assert same == digest.training_digest(load().recipe("glyphs"), "triplet", "robust")
    others = {
        digest.training_digest(load({key: value}).recipe("glyphs"), "triplet", "robust")
        for key, value in {
            "recipes.glyphs.schedule.epochs": 7,
            "recipes.glyphs.defenses.robust.steps": 4,
            "recipes.glyphs.losses.triplet.margin": 0.3,
            "recipes.glyphs.data.size": 28,
        }.items()
    }
    assert len(others) == 4
    assert same not in others
    text = load({"recipes.glyphs.data.origin": "Elsewhere.", "run.seeds": [0, 1]})
    assert digest.training_digest(text.recipe("glyphs"), "triplet", "robust") == same


def test_expected_digests_know_models_controls_and_what_is_gone() -> None:
    params = load()
    keys = [
        ("glyphs", "triplet", "robust", "quick"),
        ("glyphs", "none", "pixels_8", "quick"),
        ("glyphs", "triplet", "gone", "quick"),
        ("gone", "triplet", "robust", "quick"),
        ("glyphs", "triplet", "robust", "gone"),
    ]
    found = digest.expected(params, keys)
    assert [found[key] is None for key in keys] == [False, False, True, True, True]
    model, control = found[keys[0]], found[keys[1]]
    assert model["evaluation"] == control["evaluation"], "the same suite: they stand in one table"
    assert model["training"] != control["training"]
