"""params.yaml as validated, typed records.

Every number of an experiment stands in params.yaml. Here it becomes the very objects that the library works
with (a loss, a defence, a schedule), so that a wrong key or value is one clear sentence before anything runs.
"""

import dataclasses
import inspect
import math
import re
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import yaml

from dml.common.checks import at_least, known, linf_radius
from dml.common.files import ROOT
from dml.data import SOURCES, Source, Split
from dml.defenses import DEFENSES, Defense
from dml.evaluation.suites import SUITES, Auto, Suite
from dml.losses import LOSSES, TupleLoss
from dml.losses.mining import MINERS
from dml.models.embedder import BACKBONES, Embedder, build, check_start, pretrained_statistics
from dml.models.whitening import whiten
from dml.pipeline.paths import PARAMS
from dml.training.schedule import Schedule

SMALLEST = {"conv4": 16}  # side of a picture, pixels, of which one is left after all halving


class ParamsError(ValueError):
    """A setting that cannot be used; the sentence names its key and says what would be right."""


@dataclass(frozen=True)
class Data:
    """Where a dataset's images come from and how they are prepared.

    Attributes:
        source: how to read it, a key of ``SOURCES``.
        path: file or folder to read, below the project root.
        size: side of a prepared picture, pixels; with a crop its shorter side.
        crop: side of its central part that is searched and attacked, 0 for the whole; training may see all of it.
        train_fraction: share of the classes, from the first on, that are for training.
        validation_fraction: share of the training classes held out for model selection.
        options: further arguments of the source.
        origin: one sentence for results/ on where the images come from.
        show_images: whether figures of results/ may show them.
    """

    source: str
    path: str
    size: int
    crop: int = 0
    train_fraction: float = 0.5
    validation_fraction: float = 0.2
    options: dict = dataclasses.field(default_factory=dict)
    origin: str = ""
    show_images: bool = False

    def __post_init__(self) -> None:
        known("source", self.source, SOURCES)
        at_least("size", self.size, 8)
        at_least("crop", self.crop, 0)
        if self.crop > self.size:
            raise ValueError(f"crop is {self.crop}; it should be at most size, {self.size}")
        for name in ("train_fraction", "validation_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it should lie between 0 and 1")
        _arguments(SOURCES[self.source], self.options, "options", given=1)

    def read(self) -> Source:
        """Open the source."""
        reader = SOURCES[self.source]
        return reader(ROOT / self.path, **_arguments(reader, self.options, "options", given=1))


@dataclass(frozen=True)
class Model:
    """The embedding model.

    Attributes:
        backbone: a key of ``BACKBONES``.
        dimension: length of an embedding.
        weights: that training starts from: ``random``, ``imagenet``, or a file below the project root.
        whiten: begin with a head that whitens the backbone's features of the training pictures, not a random one.
    """

    backbone: str
    dimension: int
    weights: str = "random"
    whiten: bool = False

    def __post_init__(self) -> None:
        known("backbone", self.backbone, BACKBONES)
        at_least("dimension", self.dimension, 2)
        check_start(self.backbone, self.weights)

    def start(self, split: Split, *, seed: int) -> Embedder:
        """The model that training begins with.

        Args:
            split: the training pictures, by whose mean and deviation pictures are normalised; pretrained weights keep
                those that they were trained with.
            seed: of what is initialised at random.
        """
        word = self.weights in ("random", "imagenet")
        model = build(
            self.backbone,
            self.dimension,
            seed=seed,
            weights=self.weights if word else str(ROOT / self.weights),
            **(split.statistics() if self.weights == "random" else pretrained_statistics(self.backbone)),
        )
        return whiten(model, split) if self.whiten else model

    def empty(self) -> Embedder:
        """A model of this architecture to load trained weights into."""
        return build(self.backbone, self.dimension, seed=0)


@dataclass(frozen=True)
class Validation:
    """How an epoch is judged on held-out training classes.

    Attributes:
        queries: how many of the held-out images are attacked.
        eps: radius of that attack's l-inf ball.
        steps: its PGD steps.
    """

    queries: int
    eps: float
    steps: int

    def __post_init__(self) -> None:
        at_least("queries", self.queries, 1)
        linf_radius("eps", self.eps)
        at_least("steps", self.steps, 1)


@dataclass(frozen=True)
class Recipe:
    """All settings of one dataset.

    Attributes:
        data: its images.
        model: what is trained, the same for every loss and defence.
        validation: how an epoch is judged.
        losses: by name.
        defenses: by name.
        schedules: of each defence: the recipe's schedule, with what the defence sets otherwise.
    """

    data: Data
    model: Model
    validation: Validation
    losses: dict[str, TupleLoss]
    defenses: dict[str, Defense]
    schedules: dict[str, Schedule]


@dataclass(frozen=True)
class Run:
    """What `dvc repro` runs: every combination of these lists."""

    datasets: list[str]
    losses: list[str]
    defenses: list[str]
    attacked: list[str]
    surrogate: str
    surrogate_seed: int
    suites: list[str]
    seeds: list[int]
    standard_seeds: list[int]


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml.

    Attributes:
        run: what the pipeline runs.
        recipes: settings by dataset.
        suites: attack suites by name.
        figures: radii that results/ reports on.
        raw: the same as plain values, to be recorded beside results.
    """

    run: Run
    recipes: dict[str, Recipe]
    suites: dict[str, Suite]
    figures: "Figures"
    raw: dict[str, Any]

    def recipe(self, dataset: str) -> Recipe:
        """The settings of a dataset."""
        known("dataset", dataset, self.recipes)
        return self.recipes[dataset]


@dataclass(frozen=True)
class Figures:
    """What results/ reports.

    Attributes:
        eps: radius of the headline.
        paper_eps: radius that the paper attacks with.
    """

    eps: float
    paper_eps: float

    def __post_init__(self) -> None:
        for name in ("eps", "paper_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it should be above 0")


def load(changes: Mapping[str, Any] | None = None, file: Path = PARAMS) -> Params:
    """Read and check params.yaml.

    Args:
        changes: values to use instead, by dotted key, for example ``{"recipes.glyphs.schedule.epochs": 2}``.
        file: the file to read.

    Raises:
        ParamsError: the file is missing or no YAML, or a key or value is wrong.
    """
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParamsError(f"{file} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ParamsError(f"{file} is no valid YAML: {' '.join(str(error).split())}") from error
    try:
        for key, value in (changes or {}).items():
            _change(raw, key, value)
        raw = _fractions(raw)
        sections = {"run", "presets", "recipes", "suites", "figures"}
        _no_others(raw, sections, "params.yaml")
        params = Params(
            run=_record(Run, raw["run"], "run"),
            recipes={name: _recipe(name, value) for name, value in _mapping(raw["recipes"], "recipes").items()},
            suites={name: _suite(value, f"suites.{name}") for name, value in _mapping(raw["suites"], "suites").items()},
            figures=_record(Figures, raw["figures"], "figures"),
            raw=raw,
        )
        _check_run(params)
    except ParamsError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise ParamsError(f"{file.name}: {error}") from error
    return params


def preset(name: str, dataset: str) -> dict[str, Any]:
    """Changes for :func:`load` that put a preset into a dataset's recipe, as ``<<: *name`` does in the file."""
    return {f"recipes.{dataset}.{key}": value for key, value in load().raw["presets"][name].items()}


def _suite(raw: Any, where: str) -> Suite:
    settings = dict(_mapping(raw, where))
    if "kind" not in settings:
        raise ValueError(f"{where} lacks the key 'kind'")
    kind = settings.pop("kind")
    known(f"{where}.kind", kind, SUITES)
    return _record(SUITES[kind], settings, where)


def _recipe(dataset: str, raw: Any) -> Recipe:
    where = f"recipes.{dataset}"
    _no_others(raw, {"data", "model", "schedule", "validation", "losses", "defenses"}, where)
    losses: dict[str, TupleLoss] = {}
    for name, settings in _mapping(raw["losses"], f"{where}.losses").items():
        known(f"{where}.losses", name, LOSSES)
        settings = dict(_mapping(settings, f"{where}.losses.{name}"))
        miner = settings.pop("miner", "missing")
        known(f"{where}.losses.{name}.miner", miner, MINERS)
        losses[name] = TupleLoss(MINERS[miner], _record(LOSSES[name], settings, f"{where}.losses.{name}"))
    common = _mapping(raw["schedule"], f"{where}.schedule")
    _record(Schedule, common, f"{where}.schedule")
    defenses: dict[str, Defense] = {}
    schedules: dict[str, Schedule] = {}
    for name, settings in _mapping(raw["defenses"], f"{where}.defenses").items():
        known(f"{where}.defenses", name, DEFENSES)
        settings = dict(_mapping(settings or {}, f"{where}.defenses.{name}"))
        own = _mapping(settings.pop("schedule", {}), place := f"{where}.defenses.{name}.schedule")
        schedules[name] = _record(Schedule, common | own, place)
        defenses[name] = _record(DEFENSES[name], settings, f"{where}.defenses.{name}")
    if "standard" not in defenses:
        raise ValueError(f"{where}.defenses lacks the key 'standard', which every defence is compared with")
    data, model = _record(Data, raw["data"], f"{where}.data"), _record(Model, raw["model"], f"{where}.model")
    if not Path(data.path).is_relative_to(Path("data", dataset)):
        raise ValueError(f"{where}.data.path is {data.path!r}; it should be data/{dataset} or lie in it")
    if data.size < (least := SMALLEST.get(model.backbone, 0)):
        raise ValueError(f"{where}.data.size is {data.size}; {model.backbone} halves pictures and needs {least} pixels")
    for schedule in schedules.values():
        if schedule.crop != data.crop:
            raise ValueError(f"{where}.schedule.crop is {schedule.crop}; it should be data.crop, {data.crop}")
    return Recipe(
        data=data,
        model=model,
        validation=_record(Validation, raw["validation"], f"{where}.validation"),
        losses=losses,
        defenses=defenses,
        schedules=schedules,
    )


def _check_run(params: Params) -> None:
    run = params.run
    for dataset in run.datasets:
        known("run.datasets", dataset, params.recipes)
        for loss in run.losses:
            known(f"run.losses (of recipes.{dataset})", loss, params.recipes[dataset].losses)
        for defense in [*run.defenses, *run.attacked]:
            known(f"run.defenses or run.attacked (of recipes.{dataset})", defense, params.recipes[dataset].defenses)
    for name in run.suites:
        known("run.suites", name, params.suites)
        suite = params.suites[name]
        if isinstance(suite, Auto) and not any(math.isclose(eps, params.figures.eps) for eps in suite.eps):
            raise ValueError(f"suites.{name}.eps lacks {params.figures.eps:g}, the radius figures.eps of the headline")
    if "standard" in run.defenses:
        raise ValueError("run.defenses lists 'standard'; standard training is always run, leave it out")
    for defense in run.attacked:
        known("run.attacked", defense, ["standard", *run.defenses])
    known("run.surrogate", run.surrogate, run.defenses)
    if run.surrogate_seed in run.seeds:
        raise ValueError(f"run.surrogate_seed is {run.surrogate_seed}, one of run.seeds; it should be another")
    if sorted(run.standard_seeds) != (needed := sorted([*run.seeds, run.surrogate_seed])):
        raise ValueError(f"run.standard_seeds is {run.standard_seeds}; it should be {needed}: seeds and surrogate_seed")


def _record(target: Callable[..., Any], settings: Any, where: str) -> Any:
    """Call a record's constructor with checked settings, naming the key of whatever is wrong."""
    arguments = _arguments(target, settings, where)
    try:
        return target(**arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _arguments(target: Callable[..., Any], settings: Any, where: str, given: int = 0) -> dict[str, Any]:
    """Settings checked and converted by the signature of ``target``, whose first ``given`` arguments are left out."""
    signature = list(inspect.signature(target).parameters.values())[given:]
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    required = {item.name for item in signature if item.default is inspect.Parameter.empty}
    _no_others(settings, {item.name for item in signature}, where, required)
    converted = {}
    for name, value in settings.items():
        try:
            converted[name] = pydantic.TypeAdapter(hints[name]).validate_python(value)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            inner = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
            raise ValueError(f"{where}.{name}{inner} is {first['input']!r}: {first['msg']}") from error
    return converted


def _mapping(settings: Any, where: str) -> dict:
    if not isinstance(settings, dict):
        raise ValueError(f"{where} is {settings!r}; it should hold keys and values")
    return settings


def _no_others(settings: Any, keys: set[str], where: str, required: set[str] | None = None) -> None:
    if not isinstance(settings, dict):
        raise ValueError(f"{where} is {settings!r}; it should hold the keys {', '.join(sorted(keys))}")
    for key in settings:
        known(f"{where} key", key, keys)
    missing = (keys if required is None else required) - set(settings)
    if missing:
        raise ValueError(f"{where} lacks the key {sorted(missing)[0]!r}")


def _fractions(value: Any) -> Any:
    """Replace strings such as "8/255" by numbers, everywhere."""
    if isinstance(value, dict):
        return {key: _fractions(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_fractions(item) for item in value]
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


def main() -> int:
    """Check params.yaml and that the raw images of every dataset of ``run`` are there; returns the exit status."""
    try:
        params = load()
        for dataset in params.run.datasets:
            place = ROOT / params.recipe(dataset).data.path
            if not place.exists():
                raise ParamsError(f"{place.relative_to(ROOT)} is missing; put the images of {dataset!r} there")
    except ParamsError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
