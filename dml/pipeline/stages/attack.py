"""Chapter 4: attack one model, or one untrained control, with one suite, and keep what is found."""

import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from dml.common.files import ROOT, atomic, remove
from dml.config.build import evaluation as build
from dml.config.load import load
from dml.config.run import Params
from dml.config.schema import Recipe, Settings
from dml.data.base import Dataset
from dml.data.sampling import attacked_rows
from dml.evaluation import gates
from dml.evaluation.collapse import diagnostics
from dml.evaluation.examples import Examples, example_rows, examples
from dml.evaluation.outcomes import map_r_left, natural_scores, summarise, survival
from dml.evaluation.suites.base import Evaluation, Suite
from dml.models import weights
from dml.models.embedder import best_device
from dml.pipeline import paths
from dml.pipeline.digest import control_digest, data_settings, digest, evaluation_digest
from dml.pipeline.stored import StoredModel, open_data, open_model, open_surrogate
from dml.reporting import records
from dml.reporting.provenance import versions
from dml.reporting.spelling import CONTROL
from dml.retrieval.index import Search


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
    print(f"{dataset}, {paths.run_name(loss, defense, seed)}, suite {suite}: {len(rows)} of {len(search):,} queries")
    return Target(dataset, loss, defense, seed, suite, params, recipe, built, data, search, rows, stored, workspace)


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
    """Attack the queries with the suite; a killed evaluation continues with the first unfinished queries."""
    start = time.perf_counter()
    folder, report = target.unfinished / "queries", _report(len(target.rows))
    evaluation = target.suite.evaluate(target.search, target.rows, seed=target.seed, folder=folder, report=report)
    return Found(evaluation, summarise(evaluation.outcomes), time.perf_counter() - start)


def _report(total: int) -> Any:
    """A printer of progress: what was found to stdout, the time left to stderr."""
    start = time.perf_counter()

    def report(line: str) -> None:
        print(line, flush=True)
        done = int(line.split()[1].split("/")[0]) if "/" in line else total
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
    return gates.check(
        target.search,
        target.suite,
        found.evaluation.outcomes,
        seed=target.seed,
        surrogates={name: _search(target, name) for name in _surrogates(target, others)},
        folder=target.unfinished / "gates",
    )


def _surrogates(target: Target, others: Sequence[str]) -> list[str]:
    """Names of other models: undefended and of another defence, of the same loss, and undefended of another seed."""
    if target.loss == CONTROL:
        return sorted(others)
    run = target.params.run
    names = {paths.run_name(target.loss, name, target.seed) for name in ("standard", run.surrogate)}
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


def keep(target: Target, found: Found, checked: pd.DataFrame, shown: Examples | None) -> Path:
    """Write the outcome of every query, the examples, and the record that chapter 5 makes tables from.

    Returns:
        The record's file.
    """
    folder = paths.output(target.workspace, paths.attack_dir(target.dataset, target.run, target.suite_name))
    with atomic(folder) as partial:
        partial.mkdir()
        found.evaluation.outcomes.to_csv(partial / "outcomes.csv", index=False, float_format="%.6f")
        if shown is not None:
            shown.write(partial / "examples.npz")
    file = paths.output(target.workspace, paths.record_file(target.dataset, target.run, target.suite_name))
    training = target.stored.seconds if target.stored else math.nan
    seconds = {"training": None if math.isnan(training) else training, "suite": round(found.seconds, 1)}
    machine = {"device": _device(target.search), "versions": versions(), "seconds": seconds}
    records.write(file, _record(target, found, checked), machine)
    remove(target.unfinished)
    print(f"wrote {file.relative_to(ROOT)}")
    return file


def _record(target: Target, found: Found, checked: pd.DataFrame) -> dict[str, Any]:
    settings = target.stored.settings if target.stored else {"data": data_settings(target.recipe.data)}
    outcomes = found.evaluation.outcomes
    lowered = map_r_left(outcomes, records.LOWERED)
    return {
        "dataset": target.dataset,
        "loss": target.loss,
        "defense": target.defense,
        "seed": target.seed,
        "suite": target.suite_name,
        "digests": target.digests,
        "claims": target.suite.claims,
        "alone": bool(target.suite_settings.get("alone", False)),
        "natural": target.natural.to_dict(),
        "embedding": target.embedding,
        "rows": found.summary.astype(object).where(found.summary.notna(), None).to_dict("records"),
        "scores": found.evaluation.scores,
        "gates": checked.to_dict("records"),
        "survival": survival(outcomes),
        **({"map_r": lowered} if lowered else {}),
        "settings": {**settings, "suite": target.suite_settings},
        "embedded": target.stored.embedded if target.stored else None,
        "epoch_kept": target.stored.epoch_kept if target.stored else None,
        "weights": weights.digest(target.search.model),
    }


def _device(search: Search) -> str:
    device = search.gallery.embeddings.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"
