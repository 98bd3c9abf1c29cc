"""What each stage depends on, and what reruns nothing."""

import ast
import inspect
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dml.__main__ import main
from dml.attacks import ATTACKS
from dml.common.files import ROOT
from dml.common.table import find
from dml.config.load import load
from dml.data.sources import SOURCES
from dml.defenses import DEFENSES
from dml.evaluation import CONTROLS
from dml.evaluation.suites import SUITES
from dml.losses import LOSSES
from dml.losses.miners import MINERS
from dml.models.backbones import BACKBONES
from dml.models.backbones.base import WORDS
from dml.pipeline import digest, stage_digests

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
FIRST = STAGES.pop("digests")


def test_text_is_not_code() -> None:
    plain = "def f(x: int) -> int:\n    return x + 1\n"
    told = '"""About."""\n\n\n# why\ndef f(x: int) -> int:  # here\n    """Adds one."""\n\n    return x + 1\n'
    assert digest.bare(told) == digest.bare(plain)
    assert digest.bare(plain.replace("1", "2")) != digest.bare(plain)
    assert digest.bare("x = '# no comment'\n") == "x = '# no comment'"


def test_imports_are_found_at_any_depth(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(
        "import dml.common.checks\nfrom dml.losses import base, LOSSES\nfrom dml.attacks.balls import Linf\n"
        "def f():\n    from dml.common.files import ROOT\n"
    )
    found = ["dml.common.checks", "dml.losses.base", "dml.attacks.balls", "dml.common.files"]
    assert list(digest.imports(file)) == found, "a package's table is not a dependency; the entry that is used is"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that stands for `.digests` in dvc.yaml."""
    folder = tmp_path_factory.mktemp("digests")
    stage_digests.write(load(), folder)
    return folder


def file_of(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


def existing(package: str, item: str) -> str:
    """The module that ``from package import item`` reads: the item itself, or the package that defines it."""
    inner = f"{package}.{item}"
    return inner if file_of(inner).exists() else package


def imported(notebook: str) -> set[str]:
    """The modules of this project that the code cells of a notebook import."""
    cells = json.loads((ROOT / "notebooks" / notebook).read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            found |= {existing(node.module, item.name) for item in node.names}
        elif isinstance(node, ast.Import):
            found |= {item.name for item in node.names}
    return {name for name in found if name.startswith("dml.")}


def reached(names: set[str], neutral: tuple[str, ...]) -> set[str]:
    """The modules that some modules reach without passing through one that decides nothing, read with a plain grep."""
    found, waiting = set(), set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        text = file_of(name).read_text(encoding="utf-8")
        for package, items in re.findall(r"^\s*from (dml[\w.]*) import (\([^)]*\)|.+)$", text, re.MULTILINE):
            for item in re.findall(r"\w+", re.sub(r"\bas \w+|#.*", "", items)):
                for other in (existing(package, item), package):
                    if file_of(other).exists() and not other.startswith(neutral):
                        waiting |= {other} - found
    return found


PARAMS = load()
RECIPE = PARAMS.recipe("glyphs")
MATRIX = {"dataset": "glyphs", "loss": "triplet", "defense": "robust", "control": "pixels_8", "suite": "quick"}
MODEL = [BACKBONES[RECIPE.model.backbone], LOSSES["triplet"], MINERS["distance_weighted"]]
MODULES = [f"dml.reporting.{file.stem}" for file in (ROOT / "dml/reporting").glob("[a-z]*.py")]
SUITE = [SUITES["attacks"], *(ATTACKS[name] for name in PARAMS.suites["quick"]["attacks"])]
CHOSEN = {  # stage -> entries of tables that params.yaml names, which no import shows
    "prepare": [],
    "train": [*MODEL, DEFENSES["standard"]],
    "surrogate": [*MODEL[::2], LOSSES[PARAMS.run.losses[0]], DEFENSES["standard"]],
    "train_robust": [*MODEL, DEFENSES["robust"]],
    "control": [*SUITE, CONTROLS["pixels_8"]],
    "attack": [*SUITE, BACKBONES[RECIPE.model.backbone]],
    "figures": MODULES,
    "dependence": [BACKBONES[RECIPE.model.backbone], LOSSES["triplet"], *MINERS.values(), DEFENSES["robust"]],
}
NEUTRAL = ("dml.config.load", "dml.config.run", "dml.pipeline.", "dml.reporting.")  # choose, read, show or store
KEEP = ("dml.pipeline.recording", "dml.pipeline.stored", "dml.reporting.records")  # write what chapter 4 found
SHOWS = ("figures", "dependence")  # tables and figures are their results; in other chapters they decide none


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_all_that_its_notebook_reaches(stage: str, written: Path) -> None:
    """From the imports of its notebook: all modules but packages' tables, of which the used entry counts.

    Models and attacks also depend on the code of chapter 1, which prepared their images.
    """
    dependency = STAGES[stage]["deps"][0].replace("${run.losses[0]}", PARAMS.run.losses[0])
    dependency = re.sub(r"\$\{item\.(\w+)\}", lambda found: MATRIX[found[1]], dependency)
    told = json.loads((written / dependency.removeprefix(".digests/")).read_text())
    (notebook,) = re.findall(r"\.notebooks/(\w+\.ipynb)", STAGES[stage]["cmd"])
    assert f"notebooks/{notebook}" in told

    modules = imported(notebook)
    if stage in SHOWS:
        neutral = tuple(name for name in NEUTRAL if name != "dml.reporting.")
    else:
        neutral = NEUTRAL
        modules |= imported("01_data.ipynb") | {SOURCES[RECIPE.data.source].split(":")[0]}
    roots = {name for name in modules if name.startswith("dml.pipeline.stages.") or not name.startswith(neutral)}
    roots |= set(KEEP) if "04_attack" in notebook else set()
    expected = reached(roots | {entry.split(":")[0] for entry in CHOSEN[stage]}, neutral)
    assert {name for name in told if name.startswith("dml.") and ":" not in name} == expected
    assert set(CHOSEN[stage]) - set(MODULES) <= set(told), "the object of a module counts, too"


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
    assert FIRST["deps"] == ["notebooks", "dml", "pretrained"]
    for name, stage in STAGES.items():
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


def test_which_object_of_a_module_is_named_changes_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load().recipe("glyphs")
    controls = {digest.control_digest(recipe, name) for name in CONTROLS}
    assert len(controls) == len(CONTROLS), "several of them stand in one module"
    same = digest.training_digest(recipe, "triplet", "robust")
    monkeypatch.setitem(LOSSES, "triplet", "dml.losses.triplet:Other")
    assert digest.training_digest(recipe, "triplet", "robust") != same


def test_a_miner_counts_where_a_loss_or_a_defence_names_it() -> None:
    def code(**changes: str) -> set[str]:
        recipe = load({f"recipes.glyphs.{key.replace('__', '.')}": value for key, value in changes.items()})
        return {name for name in digest.training_code(recipe.recipe("glyphs"), "triplet", "hardness") if ":" in name}

    by_distance, at_random = MINERS["distance_weighted"], MINERS["random"]
    assert by_distance in code()
    assert at_random not in code()
    assert at_random in code(losses__triplet__miner="random")
    assert {by_distance, at_random} <= code(defenses__hardness__destination="random")


def test_dvc_looks_at_the_digests_that_lie_beside_results(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings that are read otherwise, and digests that are made otherwise, though no code of the stage changed."""

    def changed(place: str, file: str) -> list[str]:
        before, after = (json.loads((folder / file).read_text()) for folder in (written, tmp_path / place))
        assert list(before) == list(after)
        return [key for key in before if before[key] != after[key]]

    stage_digests.write(load({"recipes.glyphs.defenses.robust.steps": 4}), tmp_path / "other")
    assert changed("other", "train/glyphs-triplet-robust.json") == ["digest"]
    assert changed("other", "train/glyphs-triplet-single_step.json") == []
    for name in ("evaluation_digest", "training_digest", "control_digest", "data_settings"):
        monkeypatch.setattr(stage_digests, name, lambda *given: "other")
    stage_digests.write(load(), tmp_path / "made")
    for file in (
        "prepare/glyphs",
        "train/glyphs-triplet-robust",
        "attack/glyphs-quick",
        "control/glyphs-pixels_8-quick",
    ):
        assert changed("made", f"{file}.json") == ["digest"]


def test_no_miner_is_chosen_by_a_default() -> None:
    """A digest looks at the miners that settings name."""
    for table in (LOSSES, DEFENSES):
        for name in table:
            defaults = [item.default for item in inspect.signature(find(table, name, "")).parameters.values()]
            assert not [value for value in defaults if digest.is_miner(value)], name


def test_the_weights_that_a_model_begins_with_change_its_digest(tmp_path: Path) -> None:
    file = tmp_path / "start.safetensors"
    recipe = load().recipe("glyphs")
    recipe = replace(recipe, model=replace(recipe.model, weights=str(file)))
    found = []
    for content in (b"one", b"two", b"one"):
        file.write_bytes(content)
        found.append(digest.training_digest(recipe, "triplet", "robust"))
    assert found[0] == found[2] != found[1]


def test_the_pipeline_looks_at_all_weights_that_recipes_name() -> None:
    """A digest of other weights reaches a stage only if DVC runs the first stage again."""
    named = {recipe.model.weights for recipe in load().recipes.values()} - set(WORDS)
    assert named
    assert {Path(name).parts[0] for name in named} <= set(FIRST["deps"])


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


@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), ([], 2), (["--of"], 2)])
def test_an_option_is_no_folder(words: list[str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["digests", *words])
    assert ended.value.code == status
    assert list(tmp_path.iterdir()) == []


def test_digests_that_cannot_be_written_end_in_one_sentence(capsys: pytest.CaptureFixture) -> None:
    assert main(["digests", "."]) == 1
    assert "ValueError" in capsys.readouterr().err
