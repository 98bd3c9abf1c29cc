"""params.yaml to checked records: a wrong key or value is one clear sentence before anything runs."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dml.attacks.balls import radius_text
from dml.common.arguments import check_keys, mapping, record
from dml.common.checks import known
from dml.common.files import ROOT
from dml.config.build import evaluation, training
from dml.config.build.model import check_model
from dml.config.build.source import check_source
from dml.config.run import Figures, Params, Run, Study
from dml.config.schema import Data, Model, ParamsError, Recipe, Settings, Validation
from dml.training.schedule import Schedule

PARAMS = ROOT / "params.yaml"
LONGEST = 65536  # dimensions of an embedding: ten times the longest in use; losses are tried with it
STARTS = {"robust": "pretrained/grids.safetensors"}  # words for weights that are part of the repository
# What PyYAML lets through beside its own errors: a date or number that is none, bytes that are no text, a tag that does
# not fit its value, brackets nested too deeply.
UNREADABLE = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)


def load(changes: Mapping[str, Any] | None = None, file: Path = PARAMS) -> Params:
    """Read and check params.yaml.

    Args:
        changes: values to use instead, by dotted key, for example ``{"recipes.glyphs.schedule.epochs": 2}``.
        file: the file to read.

    Raises:
        ParamsError: the file is missing or not valid YAML, or a key or value is wrong.
    """
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        remedy = "; install this project from its folder, with `pip install -e .`" if file == PARAMS else ""
        raise ParamsError(f"{file} cannot be read: {error.strerror}{remedy}") from error
    except UNREADABLE as error:
        raise ParamsError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        settings = fractions(raw)  # a copy in which what an alias (*name) stands for can change in one place alone
        for key, value in (changes or {}).items():
            _change(settings, key, fractions(value))
        return _params(settings)
    except ParamsError:
        raise
    except RecursionError as error:
        raise ParamsError(f"{file.name} has an alias (*name) inside what it stands for; write the value out") from error
    except (ValueError, TypeError, AttributeError) as error:
        told = str(error).replace("\n", "\\n")  # a name may hold the end of a line
        raise ParamsError(f"{file.name}: {told}") from error


def preset(name: str, dataset: str) -> dict[str, Any]:
    """Return changes for :func:`load` that put a preset into a dataset's recipe, as ``<<: *name`` does in the file."""
    presets = load().presets
    known("preset", name, presets)
    return {f"recipes.{dataset}.{key}": value for key, value in presets[name].items()}


def _params(raw: Any) -> Params:
    check_keys(raw, {"run", "study", "presets", "recipes", "suites", "figures"}, "params.yaml")
    for key in ("recipes", "suites"):
        if raw[key] == {}:
            raise ValueError(f"{key} is empty; it must hold at least one")
    params = Params(
        run=record(Run, raw["run"], "run"),
        study={name: record(Study, value, f"study.{name}") for name, value in _named(raw["study"], "study").items()},
        recipes={name: _recipe(name, value) for name, value in _named(raw["recipes"], "recipes").items()},
        suites=_by_name(raw["suites"], "suites"),
        figures=record(Figures, raw["figures"], "figures"),
        presets=_by_name(raw["presets"], "presets"),
    )
    for name, settings in params.suites.items():
        _check_radii(evaluation.suite(settings, f"suites.{name}").eps, f"suites.{name}.eps")
    _check_run(params)
    _check_study(params)
    return params


def _recipe(dataset: str, raw: Any) -> Recipe:
    where = f"recipes.{dataset}"
    check_keys(raw, {"data", "model", "schedule", "validation", "losses", "defenses"}, where)
    common = mapping(raw["schedule"], f"{where}.schedule")
    record(Schedule, common, f"{where}.schedule")
    defenses: dict[str, Settings] = {}
    schedules: dict[str, Schedule] = {}
    for name, settings in _named(raw["defenses"], f"{where}.defenses").items():
        place = f"{where}.defenses.{name}"
        defenses[name] = dict(mapping({} if settings is None else settings, place))
        own = mapping(defenses[name].pop("schedule", {}), f"{place}.schedule")
        schedules[name] = record(Schedule, common | own, f"{place}.schedule")
    recipe = Recipe(
        data=record(Data, raw["data"], f"{where}.data"),
        model=record(Model, _named_start(raw["model"]), f"{where}.model"),
        validation=record(Validation, raw["validation"], f"{where}.validation"),
        losses=_by_name(raw["losses"], f"{where}.losses"),
        defenses=defenses,
        schedules=schedules,
    )
    _check_recipe(dataset, recipe)
    return recipe


def _named_start(model: Any) -> Any:
    """Settings of a model in which the file stands in place of the word for it; what is wrong stays as it is."""
    weights = model.get("weights") if isinstance(model, dict) else None
    return {**model, "weights": STARTS.get(weights, weights)} if isinstance(weights, str) else model


def _by_name(raw: Any, where: str) -> dict[str, Settings]:
    """Settings of each of several things, by name."""
    return {name: mapping(value, f"{where}.{name}") for name, value in _named(raw, where).items()}


def _named(raw: Any, where: str) -> dict[str, Any]:
    """Raises ValueError unless all keys can be names of files, which they become."""
    for name in mapping(raw, where):
        if not (isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name)):
            raise ValueError(f"{where} has the name {name!r}; it must consist of letters, digits, '_', '-' and '.'")
    return raw


def _check_radii(radii: Sequence[float], where: str) -> None:
    """A radius that stands twice would count every query twice."""
    twice = next((eps for eps in radii if radii.count(eps) > 1), None)
    if twice is not None:
        raise ValueError(f"{where} lists {radius_text(twice)} more than once; give each radius once")


def _check_recipe(dataset: str, recipe: Recipe) -> None:
    where, data = f"recipes.{dataset}", recipe.data
    if not Path(data.path).is_relative_to("data") or ".." in Path(data.path).parts:
        raise ValueError(f"{where}.data.path is {data.path!r}; it must lie in data/")
    if "standard" not in recipe.defenses:
        raise ValueError(f"{where}.defenses lacks the key 'standard', which every defence is compared with")
    for schedule in recipe.schedules.values():
        if schedule.crop != data.crop:
            raise ValueError(f"{where}.schedule.crop is {schedule.crop}; it must be data.crop, {data.crop}")
        if schedule.turns and data.height not in (0, data.size):
            raise ValueError(
                f"{where}.schedule.turns is true; with data.height, images that are no squares, it cannot be"
            )
    check_source(data, f"{where}.data")
    check_model(recipe.model, data, where)
    if recipe.model.dimension > LONGEST:
        raise ValueError(f"{where}.model.dimension is {recipe.model.dimension}; it must be at most {LONGEST}")
    if "none" in recipe.losses:
        raise ValueError(f"{where}.losses has a loss called 'none', the word for controls; give it another name")
    for name, settings in recipe.losses.items():
        training.loss(name, settings, classes=2, dimension=recipe.model.dimension or 1, where=f"{where}.losses.{name}")
    for name, settings in recipe.defenses.items():
        training.defense(name, settings, f"{where}.defenses.{name}")


def _check_run(params: Params) -> None:
    run, figures = params.run, params.figures
    for dataset in run.datasets:
        known("run.datasets", dataset, params.recipes)
        recipe = params.recipes[dataset]
        if not Path(recipe.data.path).is_relative_to(Path("data", dataset)):  # the stage `prepare` depends on it
            raise ValueError(
                f"recipes.{dataset}.data.path is {recipe.data.path!r}; for run.datasets it must be data/{dataset} or "
                "lie in it"
            )
        for loss in run.losses:
            known(f"run.losses (of recipes.{dataset})", loss, recipe.losses)
        for defense in [*run.defenses, *run.attacked]:
            known(f"run.defenses or run.attacked (of recipes.{dataset})", defense, recipe.defenses)
    for control in run.controls:
        evaluation.control(control)
    for name in run.suites:
        known("run.suites", name, params.suites)
        suite = evaluation.suite(params.suites[name], f"suites.{name}")
        if suite.claims and not any(math.isclose(eps, figures.eps) for eps in suite.eps):
            raise ValueError(f"suites.{name}.eps lacks {figures.eps:g}, the radius figures.eps of the headline")
    known("figures.suite", figures.suite, params.suites)
    first = run.datasets[0]  # chapter 6 looks into its batches
    known(f"figures.loss (of recipes.{first})", figures.loss, params.recipes[first].losses)
    known(f"figures.paper (of recipes.{first})", figures.paper, params.recipes[first].defenses)
    for name in ("baseline", "peer"):
        known(f"figures.{name}", getattr(figures, name), {key for r in params.recipes.values() for key in r.defenses})


def _check_study(params: Params) -> None:
    for name, block in params.study.items():
        where = f"study.{name}"
        known(f"{where}.suite", block.suite, params.suites)
        for dataset in block.datasets:
            known(f"{where}.datasets", dataset, params.recipes)
            recipe = params.recipes[dataset]
            known(f"run.losses (of recipes.{dataset}, for {where})", params.run.losses[0], recipe.losses)
            key = f"{where}.surrogate" if block.surrogate else "run.surrogate"
            for loss, defenses in block.losses.items():
                known(f"{where}.losses (of recipes.{dataset})", loss, recipe.losses)
                surrogate = params.surrogate(dataset, loss)
                known(f"{key} (of recipes.{dataset}, for {where})", surrogate, recipe.defenses)
                for defense in defenses:
                    known(f"{where}.losses.{loss} (of recipes.{dataset})", defense, recipe.defenses)


def fractions(value: Any) -> Any:
    """Replace strings such as ``"8/255"`` by numbers, everywhere in nested settings.

    Raises:
        ValueError: a fraction divides by zero.
    """
    if isinstance(value, dict):
        return {key: fractions(item) for key, item in value.items()}
    if isinstance(value, list):
        return [fractions(item) for item in value]
    if isinstance(value, str) and (match := re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)", value)):
        if not float(match[2]):
            raise ValueError(f"{value!r} divides by zero")
        return float(match[1]) / float(match[2])
    return value


def _change(raw: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    place = raw
    for parent in parents:
        place = place.get(parent) if isinstance(place, dict) else None
    if not isinstance(place, dict):
        raise ParamsError(f"params.yaml has no key {key!r} to change")
    place[last] = value
