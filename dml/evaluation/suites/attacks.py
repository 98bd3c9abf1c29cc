"""`attacks`: a list of attacks by name; the worst outcome of all counts for each query."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from dml.attacks import ATTACKS
from dml.attacks.balls import Linf
from dml.attacks.base import Attack
from dml.common.arguments import record
from dml.common.checks import at_least
from dml.common.table import find
from dml.evaluation.engine import Group, attack, chunk_size_for, in_chunks
from dml.evaluation.outcomes import rows_of
from dml.evaluation.suites.base import Evaluation, Suite, check_common
from dml.models.autocast import Autocast
from dml.models.bfloat16 import computed
from dml.models.embedder import device_of
from dml.retrieval.index import Search
from dml.retrieval.metrics import Outcome


@dataclass(frozen=True)
class AttackSuite(Suite):
    """Attacks in the l-inf ball, in order, each spent on the queries that the earlier ones left.

    A model with a method ``certify(search, rows, norm, eps) -> (B,) bool`` gets further rows, ``certified``: the
    queries of which it proves that no attack within the radius breaks them.

    Attributes:
        queries, eps, claims, alone, gate_tries: see :class:`dml.evaluation.suites.base.Suite`.
        attacks: settings by name. The name is the attack's in :data:`dml.attacks.ATTACKS`, unless the settings say
            ``attack``. It names the rows of the outcomes and the random generators.
        precision: of the layers while an attack looks for images, ``float32`` or ``bfloat16``, where the device
            computes in it. What it finds is judged in float32, and the gates try the doubled form in float32.

    Raises:
        ValueError: an attack or a setting is unknown or wrong.
    """

    queries: int
    eps: tuple[float, ...]
    attacks: dict[str, dict]
    alone: bool = False
    claims: bool = False
    gate_tries: int = 500
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_common(self.queries, self.eps)
        at_least("gate_tries", self.gate_tries, 1)
        if not self.attacks:
            raise ValueError("attacks is empty; it must list at least one attack")
        taken = {"none", "worst", "certified"} & set(self.attacks)
        if taken:
            raise ValueError(f"attacks.{min(taken)} is a name that the outcomes use themselves; choose another")
        _ = self.named  # a wrong setting is an error now, not after hours

    @cached_property
    def named(self) -> dict[str, Attack]:
        """The attacks by name, in order."""
        return {name: _attack(name, settings) for name, settings in self.attacks.items()}

    def runs(self, search: Search) -> list[Group]:
        """See :class:`dml.evaluation.suites.base.Suite`; an attack without runs on this gallery is left out.

        Raises:
            ValueError: none is left.
        """
        if self.precision == "bfloat16" and computed(device_of(search.model)):
            search = replace(search, model=Autocast(search.model))
        found = [Group(name, item.runs(search), item.lowers) for name, item in self.named.items()]
        if not any(group.runs for group in found):
            raise ValueError(f"the attacks {', '.join(self.named)} need a gallery of three classes or more")
        return [group for group in found if group.runs]

    def doubled(self) -> "AttackSuite | None":
        """See :class:`dml.evaluation.suites.base.Suite`."""
        stronger = {name: item.doubled() for name, item in self.named.items()}
        settings = {
            name: {"attack": self.attacks[name].get("attack", name), **asdict(item)}
            for name, item in stronger.items()
            if item is not None
        }
        return replace(self, attacks=settings, precision="float32") if settings else None

    def evaluate(
        self,
        search: Search,
        rows: np.ndarray,
        *,
        seed: int,
        folder: Path | None = None,
        report: Callable[[str], None] = print,
    ) -> Evaluation:
        """See :class:`dml.evaluation.suites.base.Suite`."""
        balls = [Linf(eps) for eps in self.eps]
        groups = self.runs(search)
        outcomes = attack(search, rows, groups, balls, seed=seed, alone=self.alone, folder=folder, report=report)
        certify = getattr(search.model, "certify", None)
        if certify is not None:
            outcomes = pd.concat([outcomes, _certified(certify, search, rows, balls, report)], ignore_index=True)
        return Evaluation(outcomes)


def _certified(
    certify: Callable[..., Any],
    search: Search,
    rows: np.ndarray,
    balls: list[Linf],
    report: Callable[[str], None],
) -> pd.DataFrame:
    """Rows of the queries that the model proves safe. R-precision and MAP@R have no certificate."""

    def work(chunk: np.ndarray) -> pd.DataFrame:
        tables = []
        for ball in balls:
            safe = certify(search, chunk, ball.norm, ball.eps)
            none = torch.full_like(safe, torch.nan, dtype=torch.float64)
            rows = rows_of(chunk, "certified", ball.norm, ball.eps, Outcome(safe, none, none))
            tables.append(rows.assign(disagree=0, margin=torch.nan))
        return pd.concat(tables, ignore_index=True)

    return in_chunks(rows, work, size=chunk_size_for(search), verb="certified", report=report)


def _attack(name: str, settings: dict) -> Attack:
    """Build an attack from its settings; errors name the setting."""
    others = {key: value for key, value in settings.items() if key != "attack"}
    return record(find(ATTACKS, settings.get("attack", name), f"attacks.{name}: attack"), others, f"attacks.{name}")
