"""The suite that an evaluation runs: one of params.yaml or settings, as far as it fits the model and the ball."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from dml.api import attack
from dml.common.checks import known
from dml.config.build import evaluation as build
from dml.config.load import PARAMS, fractions, load
from dml.evaluation.suites.attacks import AttackSuite
from dml.evaluation.suites.base import Suite, check_common
from dml.retrieval.index import Search

INSTALLED = Path(__file__).parents[1] / PARAMS.name  # a copy, where the package is installed without its clone
KINDS = ("attacks", "ranking", "poisoning")  # of suites that can be aimed at any model


@dataclass(frozen=True)
class InL2(AttackSuite):
    """A list of attacks in l2 balls.

    Attributes:
        dropped: names of the attacks that are for l-inf alone.
    """

    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:  # of a suite that was checked before, but for its radii
        check_common(self.queries, self.eps, attack.l2_radius)


def chosen(suite: str | Mapping[str, Any], eps: Any, limit: int | None, norm: str) -> Suite:
    """Return the suite in balls of a norm, with other radii or another number of queries.

    In l2 no claim rests on it, since the gates are for l-inf, and attacks that are for l-inf alone are left out.

    Raises:
        ValueError: it is unknown, cannot be aimed at any model or in such balls, or a setting is wrong.
    """
    known("norm", norm, attack.BALLS)
    if isinstance(suite, str):
        file = PARAMS if PARAMS.exists() or not INSTALLED.exists() else INSTALLED
        suites = _suites(file, file.stat().st_mtime_ns if file.exists() else 0)
        known("suite", suite, suites)
        if (kind := suites[suite]["kind"]) not in KINDS:
            fit = ", ".join(name for name, item in suites.items() if item["kind"] in KINDS)
            raise ValueError(f"suite {suite} is of kind {kind}, for the records of this repository; take one of {fit}")
        built = build.suite(suites[suite], suite)
    elif not isinstance(suite, Mapping):
        raise ValueError(f"suite is {suite!r}; give the name of a suite of params.yaml, or settings by name")
    else:
        kind = suite.get("kind", "attacks")
        known("suite.kind", kind, KINDS)
        common = {"kind": kind, "queries": 300, "eps": [8 / 255]}
        given = fractions(dict(suite))
        stated = given.pop("eps", None)
        eps = stated if eps is None else eps
        built = build.suite(common | ({"claims": True} if kind == "attacks" else {}) | given)
    if limit is not None and (not isinstance(limit, Integral) or limit < 1):
        raise ValueError(f"limit is {limit!r}; it must be a whole number of queries, at least 1")
    radii = built.eps if eps is None else _radii(eps)
    queries = built.queries if limit is None else int(limit)
    if norm == "linf":
        return replace(built, eps=radii, queries=queries)
    if not built.named or eps is None:
        raise ValueError(f"norm is {norm}; take a suite that is a list of attacks, and give eps, such as 0.5")
    settings = {item.name: getattr(built, item.name) for item in fields(AttackSuite)}
    attacks = attack.for_norm(built.attacks, norm)
    if not attacks:
        raise ValueError(
            f"norm is {norm}; take another attack than {' and '.join(attack.LINF_ONLY)}, which is for linf"
        )
    dropped = tuple(name for name in built.attacks if name not in attacks)
    settings |= {"attacks": attacks, "eps": radii, "queries": queries, "claims": False, "dropped": dropped}
    return InL2(**settings)


@functools.lru_cache(maxsize=1)
def _suites(file: Path, written: int) -> Mapping[str, Any]:
    """The suites of params.yaml, which takes a second to check; ``written`` tells when the file last changed."""
    return load(file=file).suites


def _radii(eps: Any) -> tuple[float, ...]:
    """One or several radii, each once, of any kind of number or as text such as 8/255.

    Raises:
        ValueError: they are no numbers.
    """
    several = eps if isinstance(eps, list | tuple) else np.atleast_1d(eps).tolist()
    try:
        return tuple(dict.fromkeys(float(value) for value in fractions(list(several))))
    except (TypeError, ValueError) as error:
        raise ValueError(f"eps is {eps}; give a number such as 8/255, or several") from error


def left_out(suite: Suite, search: Search) -> str:
    """Return a note on the attacks of a suite that cannot run on this gallery, or in l2; empty if there are none."""
    if not suite.named:
        return ""
    ran = {group.name for group in suite.runs(search)}
    names = [name for name in suite.named if name not in ran]
    dropped = suite.dropped if isinstance(suite, InL2) else ()
    parts = {"the gallery holds two classes": names, "they are for the l-inf ball alone": dropped}
    return "; ".join(f"left out, since {why}: {', '.join(some)}" for why, some in parts.items() if some)


def possible(
    suite: Suite, name: str | Mapping[str, Any], similarity: str, norm: str, has_gradient: bool, notes: list[str]
) -> Suite:
    """Return the suite, or for a model that gives no gradients one that needs none, which a note then names.

    Raises:
        ValueError: it is not a list of attacks, and the similarity is not cosine or the model gives no gradients.
    """
    if suite.named and not has_gradient:
        found = attack.black_box(suite, norm)
        notes.append(f"attacks that need no gradient ran: {', '.join(found.attacks)}")
        return found
    if suite.named:
        return suite
    if similarity != "cosine":
        raise ValueError(f"the suite {name} perturbs gallery items, for which similarity must be cosine")
    if not has_gradient:
        raise ValueError(f"the suite {name} needs gradients, which this model does not give")
    return suite
