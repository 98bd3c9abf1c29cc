"""Chapter 4: attack one model, or one untrained control, with one suite."""

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
Names = tuple[str, str, str, int, str]
"""Dataset, loss, defence, seed and suite."""


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
        changes: of params.yaml, for other processes to open the same.
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
    changes: Mapping[str, Any] | None = None

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

    Raises:
        ParamsError, ValueError: a setting is wrong, or a name is unknown.
        FileNotFoundError: no such model was trained with these settings.
    """
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
    search = Search.over(model.to(best_device()), data.test, data.queries)
    rows = attacked_rows(built.queries, len(search), seed)
    return Target(
        dataset, loss, defense, seed, suite, params, recipe, built, data, search, rows, stored, workspace, changes
    )


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


def _launched(target: Target, work: Callable[..., None], *given: Any, report: Say) -> bool:
    """Let other processes leave in ``target.unfinished`` what they find; False where ``run.devices`` asks for none."""
    processes = wanted(target.params.run.devices)
    if processes > 1:
        names = (target.dataset, target.loss, target.defense, target.seed, target.suite_name)
        launch(processes, work, names, target.workspace, target.changes, *given, report=report, timing=to_nobody)
    return processes > 1


def _suite_share(names: Names, workspace: str, changes: Mapping[str, Any] | None, *, report: Say, timing: Say) -> None:
    """Attack with the suite in one of several processes."""
    _evaluate(open_target(*names, workspace=workspace, changes=changes), report)


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


def run_gates(target: Target, found: Found, *, others: Sequence[str] = ()) -> pd.DataFrame:
    """Look for signs that the suite's attack failed; an empty table for a suite that no claim rests on.

    Args:
        target: what was attacked.
        found: with what outcome.
        others: more trained models, ``loss-defense-seed``, whose adversarial images are tried on this one.
    """
    if not target.suite.claims:
        return pd.DataFrame()
    told = to_nobody if _launched(target, _gates_share, others, report=print) else print
    return _check(target, found.evaluation, others, told)


def _gates_share(
    names: Names,
    workspace: str,
    changes: Mapping[str, Any] | None,
    others: Sequence[str],
    *,
    report: Say,
    timing: Say,
) -> None:
    """Check gates in one of several processes, of what the suite has found already."""
    target = open_target(*names, workspace=workspace, changes=changes)
    _check(target, _evaluate(target, to_nobody), others, report)


def _check(target: Target, evaluation: Evaluation, others: Sequence[str], report: Say) -> pd.DataFrame:
    return gates.check(
        target.search,
        target.suite,
        evaluation.outcomes,
        seed=target.seed,
        surrogates={name: _search(target, name) for name in _surrogates(target, others)},
        folder=target.unfinished / "gates",
        report=report if leads() else to_nobody,
    )


def _surrogates(target: Target, others: Sequence[str]) -> list[str]:
    """Names of other models: undefended and of another defence, of the same loss, and undefended of another seed."""
    if target.loss == CONTROL:
        return sorted(others)
    run, surrogate = target.params.run, target.params.surrogate(target.dataset, target.loss)
    names = {paths.run_name(target.loss, name, target.seed) for name in ("standard", surrogate)}
    names |= {paths.run_name(run.losses[0], "standard", run.surrogate_seed), *others}
    return sorted(names - {target.run})


def _search(target: Target, name: str) -> Search:
    stored = open_surrogate(target.dataset, name, target.workspace)
    return Search.over(stored.model.to(best_device()), target.data.test, target.data.queries)


def look(target: Target) -> Examples | None:
    """Attack a few queries of a few classes at the headline's radius; None for a suite that no claim rests on."""
    runs = target.suite.runs(target.search)
    if not runs or not target.suite.claims:
        return None
    rows = example_rows(target.search, classes=6, images=4, seed=target.seed)
    return examples(target.search, rows, runs, target.params.figures.eps, seed=target.seed)
