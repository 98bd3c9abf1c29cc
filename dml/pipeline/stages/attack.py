"""Chapter 4: attack one model, or one untrained control, with one suite."""

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from dml.common.processes import Say, launch, leads, to_nobody, wanted
from dml.config.build import evaluation as build
from dml.config.load import load
from dml.config.run import Params
from dml.config.schema import Recipe, Settings
from dml.data.base import Dataset
from dml.data.sampling import attacked_rows
from dml.evaluation import gates
from dml.evaluation.collapse import diagnostics
from dml.evaluation.examples import Examples, example_rows, examples
from dml.evaluation.outcomes import natural_scores, summarise
from dml.evaluation.suites.base import Evaluation, Suite
from dml.models import weights
from dml.models.embedder import best_device
from dml.pipeline import paths
from dml.pipeline.digest import control_digest, digest, evaluation_digest
from dml.pipeline.stored import StoredModel, open_data, open_model, open_surrogate
from dml.reporting.spelling import CONTROL
from dml.retrieval.index import Search

DONE = re.compile(r"(\d+)/\d+ queries")  # in a line of progress


@dataclass(frozen=True)
class Target:
    """A model under one suite.

    Attributes:
        dataset, loss, defense, seed, suite_name: what is attacked and with what.
        params, recipe: the settings.
        suite: the attacks.
        data: prepared images.
        search: the model with the test half as its gallery.
        rows: numbers of the attacked queries, in the order in which every suite takes them.
        stored: the trained model; None for a control.
        workspace: where results go.
        others: names of more trained models, ``loss-defense-seed``, whose adversarial images are tried on this one.
        asked: arguments of :func:`open_target`, for other processes to open the same.
    """

    dataset: str
    loss: str
    defense: str
    seed: int
    suite_name: str
    params: Params
    recipe: Recipe
    suite: Suite
    data: Dataset
    search: Search
    rows: np.ndarray
    stored: StoredModel | None
    workspace: str
    others: Sequence[str] = ()
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """Name of the model."""
        return paths.run_name(self.loss, self.defense, self.seed)

    @cached_property
    def natural(self) -> pd.Series:
        """Scores of all queries, unperturbed."""
        return natural_scores(self.search)

    @cached_property
    def embedding(self) -> dict[str, float]:
        """Signs of a collapse, of the whole gallery."""
        return diagnostics(self.search.gallery)

    @cached_property
    def surrogates(self) -> dict[str, StoredModel]:
        """Models by name whose adversarial images the gates try on this one.

        They are an undefended model and one of another defence, of the same loss, and an undefended one of another
        seed; none of these for a control.

        Raises:
            FileNotFoundError: one of them is not trained.
            DamagedError: a file of one of them is cut short.
        """
        run, loss = self.params.run, self.loss
        names = set(self.others)
        if loss != CONTROL:
            kinds = ("standard", self.params.surrogate(self.dataset, loss))
            names |= {paths.run_name(loss, kind, self.seed) for kind in kinds}
            names.add(paths.run_name(run.losses[0], "standard", run.surrogate_seed))
        names.discard(self.run)
        return {name: open_surrogate(self.dataset, self.recipe, name, self.workspace) for name in sorted(names)}

    @property
    def surrogate_weights(self) -> dict[str, str]:
        """Digest of the weights of each surrogate."""
        return {name: weights.digest(surrogate.model) for name, surrogate in self.surrogates.items()}

    @property
    def digests(self) -> dict[str, str]:
        """Digests of what made the model and of what evaluates it."""
        training = self.stored.digest if self.stored else control_digest(self.recipe, self.defense)
        return {"training": training, "evaluation": evaluation_digest(self.recipe, self.suite_settings)}

    @property
    def suite_settings(self) -> Settings:
        """The suite's settings in params.yaml."""
        return self.params.suites[self.suite_name]

    @property
    def unfinished(self) -> Path:
        """Folder of what is finished of this evaluation, for a killed one to continue from."""
        model = weights.digest(self.search.model)
        key = digest(self.digests, model, self.rows.tolist(), self.seed)
        return paths.checkpoint_dir(self.workspace) / "suites" / f"{self.dataset}-{self.run}-{self.suite_name}-{key}"


def open_target(
    dataset: str,
    loss: str,
    defense: str,
    seed: int,
    suite: str,
    *,
    workspace: str = "scratch",
    changes: Mapping[str, Any] | None = None,
    others: Sequence[str] = (),
) -> Target:
    """Open a trained model or a control with the test half as its gallery.

    Args:
        dataset: a recipe of params.yaml, prepared by chapter 1.
        loss: of the recipe, or ``none`` for a control.
        defense: of the recipe, or the name of a control.
        seed: of the training, of the choice of queries and of the attacks.
        suite: of params.yaml.
        workspace: below the project root, where results go; ``"."`` is the pipeline's.
        changes: settings to replace, by dotted key.
        others: more trained models for the gates, see :class:`Target`.

    Raises:
        ParamsError, ValueError: a setting is wrong, or a name is unknown.
        FileNotFoundError: no such model was trained with these settings, or there is none of one of the others.
    """
    asked = dict(locals())  # the arguments, before there is any other name
    params = load(changes)
    recipe = params.recipe(dataset)
    built = build.suite(params.suite(suite), f"suites.{suite}")
    data = open_data(dataset, recipe, workspace)
    if loss == CONTROL:
        stored, model = None, _control(defense, data, seed)
    else:
        recipe.check(loss, defense)
        stored = open_model(dataset, recipe, loss, defense, seed, workspace)
        model = stored.model
    for name in others:
        open_surrogate(dataset, recipe, name, workspace)  # before an attack that may take hours
    search = Search.over(model.to(best_device()), data.test, data.queries)
    rows = attacked_rows(built.queries, len(search), seed)
    names = (dataset, loss, defense, seed, suite)
    return Target(*names, params, recipe, built, data, search, rows, stored, workspace, others, asked)


def _control(name: str, data: Dataset, seed: int) -> nn.Module:
    """Build a control, fitted to the training classes if it has a method ``fit(data, seed) -> control``."""
    control = build.control(name)
    fit = getattr(control, "fit", None)
    return control if fit is None else fit(data, seed)


@dataclass(frozen=True)
class Found:
    """What a suite found.

    Attributes:
        evaluation: outcome of every query, and further scores.
        summary: one row per attack and radius.
        seconds: that it took.
    """

    evaluation: Evaluation
    summary: pd.DataFrame
    seconds: float


def run_suite(target: Target) -> Found:
    """Attack the queries with the suite; a killed evaluation continues with the first unfinished queries.

    With ``run.devices`` above 1 as many processes take turns, chunk by chunk of queries, and then gate by gate in
    :func:`run_gates`. So do those that torchrun has started. What they find is the same.
    """
    start, told = time.perf_counter(), _report(len(target.rows))
    if leads():
        queries = f"{len(target.rows)} of {len(target.search):,} queries"
        print(f"{target.dataset}, {target.run}, suite {target.suite_name}: {queries}")
    if _launched(target, _suite_share, report=told):
        told = to_nobody
    evaluation = _evaluate(target, told)
    return Found(evaluation, summarise(evaluation.outcomes), time.perf_counter() - start)


def _launched(target: Target, work: Callable[..., None], report: Say) -> bool:
    """Let other processes leave in ``target.unfinished`` what they find; False where ``run.devices`` asks for none."""
    processes = wanted(target.params.run.devices)
    if processes > 1:
        launch(processes, work, target.asked, report=report, timing=to_nobody)
    return processes > 1


def _suite_share(asked: Mapping[str, Any], *, report: Say, timing: Say) -> None:
    """Attack with the suite in one of several processes."""
    _evaluate(open_target(**asked), report)


def _evaluate(target: Target, report: Say) -> Evaluation:
    told = report if leads() else to_nobody
    folder = target.unfinished / "queries"
    return target.suite.evaluate(target.search, target.rows, seed=target.seed, folder=folder, report=told)


def _report(total: int) -> Any:
    """A printer of progress: what was found to stdout, the time left to stderr."""
    start = time.perf_counter()

    def report(line: str) -> None:
        print(line, flush=True)
        done = int(found[1]) if (found := DONE.search(line)) else total
        passed = time.perf_counter() - start
        left = passed / done * (total - done)
        print(f"  {passed:.0f} s, {int(left // 60)}:{int(left % 60):02d} left", file=sys.stderr)

    return report


def run_gates(target: Target, found: Found) -> pd.DataFrame:
    """Look for signs that the suite's attack failed; an empty table for a suite that no claim rests on.

    Args:
        target: what was attacked.
        found: with what outcome.

    Raises:
        FileNotFoundError, DamagedError: see :attr:`Target.surrogates`.
    """
    if not target.suite.claims:
        return pd.DataFrame()
    told = to_nobody if _launched(target, _gates_share, report=print) else print
    return _check(target, found.evaluation, told)


def _gates_share(asked: Mapping[str, Any], *, report: Say, timing: Say) -> None:
    """Check gates in one of several processes, of what the suite has found already."""
    target = open_target(**asked)
    _check(target, _evaluate(target, to_nobody), report)


def _check(target: Target, evaluation: Evaluation, report: Say) -> pd.DataFrame:
    data, device = target.data, best_device()
    return gates.check(
        target.search,
        target.suite,
        evaluation.outcomes,
        seed=target.seed,
        surrogates={
            name: Search.over(surrogate.model.to(device), data.test, data.queries)
            for name, surrogate in target.surrogates.items()
        },
        # Kept gates of other surrogates are not continued.
        folder=target.unfinished / f"gates-{digest(target.surrogate_weights)}",
        report=report if leads() else to_nobody,
    )


def look(target: Target) -> Examples | None:
    """Attack a few queries of a few classes at the headline's radius; None for a suite that no claim rests on."""
    runs = target.suite.runs(target.search)
    if not runs or not target.suite.claims:
        return None
    rows = example_rows(target.search, classes=6, images=4, seed=target.seed)
    return examples(target.search, rows, runs, target.params.figures.eps, seed=target.seed)
