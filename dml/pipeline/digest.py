"""Which code and which settings decide a result, as digests: for records, checkpoints and DVC's stages.

A stage's code is every module that its own module reaches by imports, and the entries of tables that params.yaml names.
A module is digested without comments, docstrings and blank lines, so that editing text reruns nothing.
"""

import ast
import functools
import hashlib
import importlib.util
import io
import json
import tokenize
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dml.attacks import ATTACKS
from dml.common.files import ROOT
from dml.config.run import Params
from dml.config.schema import Data, Recipe, Settings
from dml.data.sources import SOURCES
from dml.defenses import DEFENSES
from dml.evaluation import CONTROLS
from dml.evaluation.suites import SUITES
from dml.losses import LOSSES
from dml.losses.miners import MINERS
from dml.models.backbones import BACKBONES
from dml.models.backbones.base import WORDS

# Modules that choose, read, show or store, and decide no result: what they read stands in the digested settings.
NEUTRAL = ("dml.config.load", "dml.config.run", "dml.pipeline.", "dml.reporting.")
STAGES = "dml.pipeline.stages."
Code = dict[str, str]
"""Module -> digest of its code; and each entry of a table that was named, ``"package.module:object"``."""


def training_code(recipe: Recipe, loss: str, defense: str) -> Code:
    """Return the code that decides a trained model."""
    model, metric, settings = recipe.model, recipe.losses[loss], recipe.defenses[defense]
    named = [BACKBONES[model.backbone], LOSSES[metric.get("loss", loss)], DEFENSES[settings.get("defense", defense)]]
    named += [MINERS[value] for value in (*metric.values(), *settings.values()) if is_miner(value)]
    code = code_of(STAGES + "train", *named) | prepare_code(recipe.data)
    if model.weights not in WORDS:
        code[model.weights] = hashlib.sha256((ROOT / model.weights).read_bytes()).hexdigest()[:16]
    return code


def prepare_code(data: Data) -> Code:
    """Return the code that decides the prepared images."""
    return code_of(STAGES + "prepare", SOURCES[data.source])


def evaluation_code(recipe: Recipe, suite: Settings, control: str | None = None) -> Code:
    """Return the code that decides what a suite finds, on a trained model or on a control."""
    named = [SUITES[suite["kind"]], CONTROLS[control] if control else BACKBONES[recipe.model.backbone]]
    named += [ATTACKS[settings.get("attack", name)] for name, settings in suite.get("attacks", {}).items()]
    return code_of(STAGES + "attack", *named) | prepare_code(recipe.data)


def training_digest(recipe: Recipe, loss: str, defense: str) -> str:
    """Digest the code and settings that decide a trained model, less its seed."""
    return digest(training_code(recipe, loss, defense), training_settings(recipe, loss, defense))


def control_digest(recipe: Recipe, control: str) -> str:
    """Digest what decides a control: its code and the prepared images."""
    return digest(code_of(CONTROLS[control]) | prepare_code(recipe.data), decisive(recipe.data))


def evaluation_digest(recipe: Recipe, suite: Settings) -> str:
    """Digest the code and settings that decide what a suite finds of any model on a dataset."""
    code = {module: value for module, value in evaluation_code(recipe, suite).items() if ".backbones." not in module}
    return digest(code, {"data": decisive(recipe.data), "suite": suite})


def data_settings(data: Data) -> Settings:
    """Return what lies beside prepared images: the settings that decide them, and the digest of the code that does."""
    return decisive(data) | {"code": digest(prepare_code(data))}


def decisive(data: Data) -> Settings:
    """Return the settings that decide the prepared images."""
    return {name: value for name, value in asdict(data).items() if name not in ("origin", "show_images")}


def training_settings(recipe: Recipe, loss: str, defense: str) -> Settings:
    """Return all settings that decide a trained model, defaults included where the recipe has records."""
    return {
        "data": decisive(recipe.data),
        "model": asdict(recipe.model),
        "schedule": asdict(recipe.schedules[defense]),
        "validation": asdict(recipe.validation),
        "loss": {"name": loss, **recipe.losses[loss]},
        "defense": {"name": defense, **recipe.defenses[defense]},
    }


def digest(*parts: Any) -> str:
    """Digest anything that JSON can hold; keys in any order give the same digest."""
    text = json.dumps(parts, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_miner(value: Any) -> bool:
    """Tell whether a setting of a loss or a defence names a miner."""
    return isinstance(value, str) and value in MINERS


def code_of(*named: str) -> Code:
    """Return the code that some modules and entries of tables reach, and which entries they are.

    Two entries of a table may stand in one module: the object's name tells them apart.
    """
    entries = {name: "named" for name in named if ":" in name}
    return module_digests(*(name.split(":")[0] for name in named)) | entries


@functools.cache
def module_digests(*roots: str) -> Code:
    """Return the digest of each module that some modules reach by imports, in alphabetical order."""
    return {module: source_digest(_file(module)) for module in sorted(closure(roots))}


def closure(roots: Iterable[str]) -> set[str]:
    """Return the modules of this package that some modules reach by imports, themselves included.

    A package's ``__init__.py`` holds a docstring and a table at most: it is passed over, and so are the modules of
    ``NEUTRAL``, but for the roots.
    """
    found, waiting = set(), list(roots)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += [name for name in imports(_file(module)) if not name.startswith(NEUTRAL)]
    return found


@functools.cache
def imports(file: Path) -> tuple[str, ...]:
    """Return the modules of this package that a file imports, at any depth of its code."""
    found: dict[str, None] = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "dml":
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                found[inner if _file(inner).exists() else node.module] = None
        elif isinstance(node, ast.Import):
            found |= {name.name: None for name in node.names if name.name.startswith("dml.")}
    return tuple(name for name in found if _file(name).exists())


@functools.cache
def source_digest(file: Path) -> str:
    """Digest a file's code without comments, docstrings and blank lines."""
    return hashlib.sha256(bare(file.read_text(encoding="utf-8")).encode()).hexdigest()[:16]


def bare(source: str) -> str:
    """Return source code without comments, docstrings, blank lines and trailing space."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for part in body if isinstance(body, list) else []:
            value = part.value if isinstance(part, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                lines[part.lineno - 1 : part.end_lineno] = [""] * (part.end_lineno - part.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def notebook_digest(file: Path) -> str:
    """Digest a notebook's code cells; its text reruns nothing."""
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    return digest([bare("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"])


def _file(module: str) -> Path:
    """The file of a module: of this repository, or of one's own that Python finds elsewhere."""
    inside = ROOT / f"{module.replace('.', '/')}.py"
    if inside.exists() or module.split(".")[0] == "dml":
        return inside
    try:
        found = importlib.util.find_spec(module)
    except ImportError:
        return inside
    return Path(found.origin) if found and str(found.origin).endswith(".py") else inside


def expected(params: Params, keys: Iterable[tuple[str, str, str, str]]) -> dict[tuple[str, str, str, str], Any]:
    """Return the digests that records must carry to be current.

    Args:
        params: the settings now.
        keys: (dataset, loss, defense, suite) of each record; a control has loss ``none``.

    Returns:
        key -> ``{"training", "evaluation"}``, or None where params.yaml has no settings for the key.
    """

    @functools.cache
    def training(dataset: str, loss: str, defense: str) -> str | None:
        recipe = params.recipes[dataset]
        if loss == "none" and defense in CONTROLS:
            return control_digest(recipe, defense)
        known = loss in recipe.losses and defense in recipe.defenses and not _missing_weights(recipe)
        return training_digest(recipe, loss, defense) if known else None

    @functools.cache
    def evaluation(dataset: str, suite: str) -> str:
        return evaluation_digest(params.recipes[dataset], params.suites[suite])

    def both(dataset: str, loss: str, defense: str, suite: str) -> dict[str, str] | None:
        if dataset not in params.recipes or suite not in params.suites:
            return None
        trained = training(dataset, loss, defense)
        return None if trained is None else {"training": trained, "evaluation": evaluation(dataset, suite)}

    return {key: both(*key) for key in dict.fromkeys(keys)}


def _missing_weights(recipe: Recipe) -> bool:
    return recipe.model.weights not in WORDS and not (ROOT / recipe.model.weights).exists()
