"""Plain records of what the pipeline runs and what results/ reports: they choose among results and decide none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dml.common.checks import at_least, known
from dml.config.schema import Recipe, Settings


@dataclass(frozen=True)
class Run:
    """What `dvc repro` runs: every combination of these lists.

    Attributes:
        datasets: keys of ``recipes``.
        losses: of those recipes.
        defenses: trained by notebook 03.
        attacked: defences that notebook 04 evaluates, ``standard`` included.
        controls: embedders without a trained network that notebook 04 evaluates beside them.
        surrogate: the defence whose adversarial images are tried on every other model.
        surrogate_seed: seed of one more standard model, of the first loss, used in the same way.
        suites: keys of ``suites``.
        seeds: of the trainings and evaluations.
        devices: processes of this machine that share the work of a training, ``auto`` for one per GPU. They find the
            model that one process finds, but for rounding, so no digest holds their number.
    """

    datasets: list[str]
    losses: list[str]
    defenses: list[str]
    attacked: list[str]
    controls: list[str]
    surrogate: str
    surrogate_seed: int
    suites: list[str]
    seeds: list[int]
    devices: int | Literal["auto"] = 1

    def __post_init__(self) -> None:
        for name in ("datasets", "losses", "defenses", "attacked", "suites", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"run.{name} is empty; list at least one")
            _once(f"run.{name}", getattr(self, name))
        if "standard" in self.defenses:
            raise ValueError("run.defenses lists 'standard'; standard training always runs, so leave it out")
        for defense in self.attacked:
            known("run.attacked", defense, ["standard", *self.defenses])
        known("run.surrogate", self.surrogate, self.defenses)
        if self.devices != "auto":
            at_least("devices", self.devices, 1)
        if self.surrogate_seed in self.seeds:
            raise ValueError(f"run.surrogate_seed is {self.surrogate_seed}, one of run.seeds; it must be another seed")


@dataclass(frozen=True)
class Study:
    """One block of what `make study` runs: many defences under one suite.

    Attributes:
        datasets: keys of ``recipes``.
        losses: the defences to train and attack, ``standard`` included, by loss.
        suite: a key of ``suites``.
        seeds: of the trainings and evaluations.
        surrogate: a defence that takes the place of ``run.surrogate`` for these datasets and losses, where that refuses
            the losses.
    """

    datasets: list[str]
    losses: dict[str, list[str]]
    suite: str
    seeds: list[int]
    surrogate: str = ""

    def __post_init__(self) -> None:
        for name in ("datasets", "losses", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; list at least one")
        for name, listed in {"datasets": self.datasets, "seeds": self.seeds, **self.losses}.items():
            _once(name, listed)


def _once(name: str, listed: Sequence[Any]) -> None:
    """Raise ValueError if something is listed twice: two processes would make the same files at once."""
    twice = [item for item in dict.fromkeys(listed) if listed.count(item) > 1]
    if twice:
        raise ValueError(f"{name} lists {twice[0]!r} twice; once is enough")


@dataclass(frozen=True)
class Figures:
    """What results/ reports.

    Attributes:
        eps: radius of the headline.
        paper_eps: radius that the paper attacks with.
        suite: whose outcomes the headline shows.
        loss: whose models the images and maps show.
        baseline: the undefended training, which factors are relative to.
        paper: the paper's defence, which its claims are about.
        peer: the earlier defence that the paper compares with.
    """

    eps: float
    paper_eps: float
    suite: str
    loss: str
    baseline: str
    paper: str
    peer: str

    def __post_init__(self) -> None:
        for name in ("eps", "paper_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"figures.{name} is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True)
class Params:
    """The whole of params.yaml.

    Attributes:
        run: what the pipeline runs.
        study: what `make study` runs beside it: blocks by name, in their order.
        recipes: settings by dataset.
        suites: settings of each evaluation suite, by name; ``kind`` is a key of ``SUITES``.
        figures: what results/ reports.
        presets: settings that recipes share.
    """

    run: Run
    study: dict[str, Study]
    recipes: dict[str, Recipe]
    suites: dict[str, Settings]
    figures: Figures
    presets: Mapping[str, Any]

    def recipe(self, dataset: str) -> Recipe:
        """Return the settings of a dataset; ValueError if there are none."""
        known("dataset", dataset, self.recipes)
        return self.recipes[dataset]

    def block(self, name: str) -> Study:
        """Return a block of the study; ValueError if there is none."""
        known("study block", name, self.study)
        return self.study[name]

    def surrogate(self, dataset: str, loss: str) -> str:
        """Return the defence whose adversarial images are tried on the other models of a dataset and loss.

        Raises:
            ValueError: two blocks of the study name different ones.
        """
        blocks = [block for block in self.study.values() if dataset in block.datasets and loss in block.losses]
        own = sorted({block.surrogate for block in blocks if block.surrogate})
        if len(own) > 1:
            raise ValueError(f"study has two surrogates for {dataset} with {loss}: {own[0]} and {own[1]}")
        return own[0] if own else self.run.surrogate

    def suite(self, name: str) -> Settings:
        """Return the settings of a suite; ValueError if there are none."""
        known("suite", name, self.suites)
        return self.suites[name]
