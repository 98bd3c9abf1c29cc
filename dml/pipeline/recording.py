"""What chapter 4 found, written down: outcomes, examples, and the record that chapter 5 makes tables from."""

import math
import platform
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from dml.common.files import ROOT, atomic, remove
from dml.evaluation.examples import Examples
from dml.evaluation.outcomes import map_r_left, survival
from dml.models import weights
from dml.pipeline import paths
from dml.pipeline.digest import decisive
from dml.pipeline.stages.attack import Found, Target
from dml.reporting import records
from dml.reporting.provenance import versions
from dml.retrieval.index import Search


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
    print(f"wrote {file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}")
    return file


def _record(target: Target, found: Found, checked: pd.DataFrame) -> dict[str, Any]:
    settings = target.stored.settings if target.stored else {"data": decisive(target.recipe.data)}
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
        **({"surrogates": target.surrogate_weights} if len(checked) and target.surrogates else {}),
        "survival": survival(outcomes),
        **({"map_r": lowered} if lowered else {}),
        "settings": {**settings, "suite": target.suite_settings},
        "embedded": target.stored.embedded if target.stored else None,
        "epoch_kept": target.stored.epoch_kept if target.stored else None,
        "weights": weights.digest(target.search.model),
    }


def _device(search: Search) -> str:
    """The GPU's name; or threads, architecture and instructions, on which the last bits of a training depend."""
    device = search.gallery.embeddings.device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}, {platform.machine()} {instructions}"
