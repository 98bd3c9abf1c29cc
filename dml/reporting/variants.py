"""The settings of a run by dotted name: they tell which runs differ in one setting alone."""

import inspect
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from dml.common.table import find
from dml.config.run import Figures
from dml.defenses import DEFENSES
from dml.defenses.robust import QUERY
from dml.reporting.records import Record
from dml.reporting.spelling import CONTROL

BEST = "best"  # this project's own defence, chosen on held-out classes: its variants show what each part is worth
OWN = (BEST, "best_long", "best_turns")  # with two that train for longer, on images that move and turn, chosen so too
ON_QUERIES = "robust_query"  # the paper's defence carried over to losses that cost whole queries, each perturbed
RADIUS = "defense.eps"  # of the ball that a defence trains with
SCOPE = "defense.scope"  # what shares a perturbation
KIND = "defense.class"  # key of ``DEFENSES``
TARGET = "defense.target"  # what is perturbed: a role of tuples, as in the paper, or whole queries
Leaves = dict[str, Any]
"""Setting by dotted name, such as ``schedule.averaging``."""


def trained(records: Sequence[Record]) -> list[Record]:
    """Return the records of trained models; a control has no settings of a defence."""
    return [record for record in records if "defense" in record["settings"]]


def leaves(record: Record) -> Leaves:
    """Return all settings of a trained model's run but the name of its defence.

    What the settings of the defence leave out has the default of its class, so that a default and the same value in
    params.yaml are equal.

    Raises:
        ValueError: the defence is none of ``DEFENSES``.
    """
    given = dict(record["settings"]["defense"])
    name = given.pop("name")
    kind = given.pop("defense", name)
    arguments = inspect.signature(find(DEFENSES, kind, "defense")).parameters.values()
    defaults = {item.name: item.default for item in arguments if item.default is not item.empty}
    settings = record["settings"] | {"defense": {"class": kind, **defaults, **given}}
    return dict(_flat(json.loads(json.dumps(settings)), ""))  # tuples become lists, as in records


def as_the_papers(records: Sequence[Record], figures: Figures) -> list[Record]:
    """Return the records with ``ON_QUERIES`` under the name of the paper's defence, for losses that it cannot train.

    Args:
        records: of any datasets.
        figures: names the paper's defence.
    """
    have = {(record["dataset"], record["loss"]) for record in records if record["defense"] == figures.paper}
    return [
        record | {"defense": figures.paper}
        if record["defense"] == ON_QUERIES and (record["dataset"], record["loss"]) not in have
        else record
        for record in records
    ]


def at_their_best(found: pd.DataFrame, records: Sequence[Record], named: Collection[str] = ()) -> list[tuple[str, str]]:
    """Return loss and defence of the best model of each class of defence, and of each named defence.

    Args:
        found: models with ``loss`` and ``defense``, best first; controls are left out.
        records: of these models; a model whose record names no class is a class by itself.
        named: defences that are kept beside the best of their class.
    """
    kinds = {(record["loss"], record["defense"]): _kind(leaves(record)) for record in trained(records)}
    kept: dict[str, tuple[str, str]] = {}
    for model in zip(found["loss"], found["defense"], strict=True):
        if model[0] != CONTROL:
            kept.setdefault(f"class {kinds.get(model, model)}", model)
            if model[1] in named:
                kept.setdefault(model[1], model)
    return list(dict.fromkeys(kept.values()))


def _kind(settings: Leaves) -> str:
    """The class of a defence; that of the paper and its extension to queries are two."""
    return f"{settings[KIND]}, {QUERY}" if settings.get(TARGET) == QUERY else settings[KIND]


def one_difference(first: Leaves, second: Leaves) -> str | None:
    """Return the name of the one setting that differs; None if none does, or more than one."""
    names = [name for name in first | second if first.get(name) != second.get(name)]
    return names[0] if len(names) == 1 else None


def differences(run: Leaves, reference: Leaves, but: Collection[str]) -> dict[str, Any]:
    """Return the settings that a run and a reference both have with other values, some left out, by their last name."""
    names = [name for name in reference if name in run and name not in but and run[name] != reference[name]]
    return {name.split(".")[-1]: run[name] for name in names}


def _flat(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
