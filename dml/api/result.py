"""What an evaluation found: a table to print, and files to keep."""

import json
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from dml.api import printed
from dml.api.attack import NAMES, radius
from dml.api.loading import check_output
from dml.api.similarity import SimilaritySearch
from dml.api.summary import MODEL, r1_left, summarise, tied
from dml.common.files import atomic, remove, write_json, write_text
from dml.data.transforms import to_float
from dml.evaluation.statistics import paired_test, wilson
from dml.reporting.spelling import control_kind
from dml.retrieval.metrics import ranking

TWICE = "broken by twice the steps"  # a gate
SHOWN = 8  # fooled searches in the report
WIDTH = 100  # columns of the printed table
MANY_TIES = 0.05  # share of the queries
CHANCE = 0.05  # p from which a difference to a control may be chance


class Images(NamedTuple):
    """The attacked queries at the largest radius.

    Attributes:
        eps: that radius.
        rows, labels: (Q,) numbers and classes of the queries.
        images, adversarial: (Q, 3, H, W) float32 in [0, 1], natural and attacked.
    """

    eps: float
    rows: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    adversarial: np.ndarray


class Sentence(NamedTuple):
    """What a reader must know, and whether it is a warning."""

    text: str
    warns: bool


class Fooled(NamedTuple):
    """One search that the attack turned: images (H, W, 3) in [0, 1], and the classes of those found."""

    row: int
    label: str
    query: np.ndarray
    adversarial: np.ndarray
    found: np.ndarray
    found_label: str
    fooled: np.ndarray
    fooled_label: str


@torch.no_grad()
def fooled_searches(search: SimilaritySearch, images: Images, outcomes: pd.DataFrame) -> list[Fooled]:
    """Return some queries that are right before the attack and wrong after it, of different classes first."""
    at = outcomes[np.isclose(outcomes["eps"], images.eps)].query("attack == 'worst'").set_index("query")["r1"]
    before = outcomes[outcomes["attack"] == "none"].set_index("query")["r1"]
    broken = np.flatnonzero([before[row] == 1 and at[row] == 0 for row in images.rows])
    order = pd.Series(images.labels[broken]).groupby(images.labels[broken]).cumcount().argsort(kind="stable")
    places = broken[order.to_numpy()][:SHOWN]
    if not len(places):
        return []
    queries, gallery = search.queries(images.rows[places]), search.gallery
    device, names = gallery.labels.device, search.split.class_names

    def nearest(given: np.ndarray) -> np.ndarray:
        embeddings = search.model(torch.from_numpy(given).to(device))
        return ranking(embeddings, queries, gallery, 1)[:, 0].cpu().numpy()

    def image(row: int) -> np.ndarray:
        return to_float(search.split.images[[row]])[0].permute(1, 2, 0).numpy()

    found, fooled = nearest(images.images[places]), nearest(images.adversarial[places])
    return [
        Fooled(
            int(images.rows[place]),
            str(images.labels[place]),
            images.images[place].transpose(1, 2, 0),
            images.adversarial[place].transpose(1, 2, 0),
            image(first),
            names[search.split.labels[first]],
            image(second),
            names[search.split.labels[second]],
        )
        for place, first, second in zip(places, found, fooled, strict=True)
    ]


@dataclass(frozen=True, repr=False)
class Result:
    """What an evaluation found.

    Attributes:
        about: what was evaluated: suite, similarity, seed, sizes, digests of images and embeddings, versions; under
            ``natural`` the scores of all queries, attacked or not.
        outcomes: one row per model, query, attack and radius, see :func:`dml.api.attack.run`. ``model`` is
            ``your model`` or the name of a control. Of images in a folder, ``file`` is the query's path there.
        gates: signs of a failed attack that were looked for, see :func:`dml.evaluation.gates.check` and
            :mod:`dml.api.gates`; may be empty.
        scores: of the suite ``ranking``.
        cost: images put through the model forward and backward, and seconds.
        notes: what the checks warned of.
        images: the attacked queries at the largest radius, the first of them where all would fill the memory; None for
            a suite that is not a list of attacks.
        fooled: some fooled searches.
    """

    about: dict[str, Any]
    outcomes: pd.DataFrame
    gates: pd.DataFrame
    scores: dict[str, float]
    cost: dict[str, float]
    notes: list[str]
    images: Images | None
    fooled: list[Fooled]

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per model and radius.

        ``model, eps, queries, natural_r1``, ``r1`` of the worst image of each query, ``natural_map_r, map_r`` (the
        lowest that any attack left each query), and R@k as ``natural_r2, r2`` and so on. Attacked R@k beyond R@1 is
        that of the images that lower R@1 most: an upper bound. ``_low`` and ``_high`` after a score's name are the ends
        of its 95% interval over queries: Wilson's for R@k, Student's for MAP@R.
        """
        return summarise(self.outcomes)

    @cached_property
    def by_attack(self) -> pd.DataFrame:
        """One row per attack and radius: ``attack, eps, queries, r1, r1_low, r1_high, map_r`` of the model.

        Attacks that run in turn, as those of ``quick``, share a row, ``worst``; the first of them and that on MAP@R
        also have their own. Those of ``paper``, which meet all queries, each have a row.
        """
        own = self.outcomes[(self.outcomes["model"] == MODEL) & (self.outcomes["attack"] != "none")]
        found = own.groupby(["attack", "eps"], sort=False).agg(
            queries=("r1", "size"), r1=("r1", "mean"), map_r=("map_r", "mean")
        )
        ends = [wilson(round(row.r1 * row.queries), int(row.queries)) for row in found.itertuples()]
        found[["r1_low", "r1_high"]] = ends
        return found.reset_index()[["attack", "eps", "queries", "r1", "r1_low", "r1_high", "map_r"]]

    @property
    def failed(self) -> pd.DataFrame:
        """The gates that do not hold."""
        return self.gates[~self.gates["passed"].astype(bool)]

    def radius(self, eps: float) -> str:
        """Return a radius as people write it."""
        return radius(eps, self.about["norm"])

    def sentences(self) -> list[Sentence]:
        """Return what a reader must know beside the table: the best control, gates, notes."""
        notes = [Sentence(f"Note: {note}{'' if note.endswith('?') else '.'}", True) for note in self.notes]
        return [*self._natural(), *self._against_controls(), self._gates(), *notes]

    def _natural(self) -> list[Sentence]:
        """A model that hardly retrieves is probably fed wrongly; attacks on it tell little."""
        ties, missed, count = tied(self.outcomes)
        told = f"The nearest right item of {ties} of {count} queries ties with a wrong one, which counts as a miss."
        alike = [Sentence(told, True)] if ties > MANY_TIES * count else []
        if missed / 2 < ties < count:  # they explain the score, unless all embeddings are equal
            return alike
        found = self.summary.groupby("model", sort=False).first()
        own, controls = found.loc[MODEL], found.drop(MODEL)
        why = ": check labels, order of channels, and normalisation"
        better = controls[controls["natural_r1_low"] > own["natural_r1_high"]]
        if len(better):
            best = better["natural_r1"].idxmax()
            ahead = f"below the {better['natural_r1'].max():.3f} of {control_kind(str(best))} {best}"
            return [*alike, Sentence(f"Natural R@1 is {own['natural_r1']:.3f}, {ahead}{why}.", True)]
        if own["natural_r1_low"] <= 1 / self.about["classes"]:
            return [*alike, Sentence(f"Natural R@1 is {own['natural_r1']:.3f}, not beyond chance{why}.", True)]
        return alike

    def _against_controls(self) -> list[Sentence]:
        found = []
        for eps, rows in self.summary.groupby("eps"):
            left = rows.set_index("model")["r1"]
            controls = left.drop(MODEL)
            if len(controls):
                best = controls.idxmax()
                ahead = bool(left[MODEL] > controls[best])
                word = "more" if ahead else "no more"
                kept = f"At {self.radius(eps)} your model keeps R@1 {left[MODEL]:.3f}"
                other = f"{control_kind(str(best))} {best}"
                doubt = ", not beyond chance" if ahead and self._chance(eps, str(best)) >= CHANCE else ""
                told = f"{kept}, {word} than the {controls[best]:.3f} of {other}{doubt}."
                found.append(Sentence(told, not ahead or bool(doubt)))
        return found

    def _chance(self, eps: float, control: str) -> float:
        """p of McNemar's exact test between the model and a control on the same queries."""
        kept = {name: r1_left(rows, eps) for name, rows in self.outcomes.groupby("model")}
        return paired_test(kept[MODEL].eq(1).tolist(), kept[control].eq(1).tolist())[2]

    def _gates(self) -> Sentence:
        if self.gates.empty:
            suite = f"suite {self.about['suite']}" if self.about["norm"] == "linf" else "they are for the l-inf ball"
            why = "the model gives no gradients" if not self.about["gradients"] else suite
            return Sentence(f"Gates were not run ({why}): take R@1 left as an upper bound only.", True)
        if self.failed.empty:
            told = f"All {len(self.gates)} gates hold: no sign that the attack failed."
            if TWICE not in set(self.gates["gate"]):
                told += f" One was not asked: {TWICE}, since no attack here says what that is (Attack.doubled)."
            return Sentence(told, TWICE not in set(self.gates["gate"]))
        names = "; ".join(f"{gate.gate} at {self.radius(gate.eps)}" for gate in self.failed.itertuples())
        counted = f"{len(self.failed)} of {len(self.gates)} gates {'fails' if len(self.failed) == 1 else 'fail'}"
        return Sentence(f"{counted}, so R@1 left may be too high: {names}.", True)

    def __repr__(self) -> str:
        return str(self)  # in a notebook, the table and not all outcomes

    def __str__(self) -> str:
        about = self.about
        kind = "" if about["gradients"] else ", black box (no gradients)"
        lines = [
            f"{about['queries']:,} of {about['all_queries']:,} queries in the table; gallery of "
            f"{about['gallery']:,} images in {about['classes']:,} classes, {about['shape'][0]} x {about['shape'][1]} "
            "pixels",
            printed.natural_text(about["natural"]),
            f"suite {about['suite']}{kind}, similarity {about['similarity']}, seed {about['seed']}, "
            f"{NAMES[about['norm']]} ball",
            "",
            *printed.table(self),
            "",
            *printed.scores(self),
            "",
        ]
        if apart := printed.by_attack(self):
            lines += [*printed.columns(apart), ""]
        if self.scores:
            lines.append("scores: " + ", ".join(f"{name} {value:.3g}" for name, value in self.scores.items()))
        lines += [part for sentence in self.sentences() for part in textwrap.wrap(sentence.text, WIDTH)]
        cost = self.cost
        whose = "Cost of the last call, which continued" if cost["continued"] else "Cost"
        lines.append(
            f"{whose}: {cost['forward']:,} images forward, {cost['backward']:,} backward, {cost['seconds']:.0f} s on "
            f"{about['device']}"
        )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return all but outcomes and images, as JSON can hold it."""
        rows = self.summary.astype(object).where(self.summary.notna(), None).to_dict("records")
        parts = {"scores": self.scores, "gates": self.gates.to_dict("records"), "cost": self.cost, "notes": self.notes}
        text = json.dumps({"about": self.about, "summary": rows, **parts}, default=_plain)
        return json.loads(text, parse_constant=lambda name: None)  # NaN and infinities, which JSON has not

    def save(self, folder: str | Path) -> Path:
        """Write result.json, outcomes.csv, adversarial.npz, curve.png and report.html, each whole or not at all.

        ``adversarial.npz`` holds ``rows, labels, images, adversarial, eps``: the attacked queries at the largest
        radius, if the suite keeps them. ``report.html`` shows some, and asks no other file or address for anything.

        Returns:
            The page.

        Raises:
            ValueError: the folder is a file, or cannot be written to.
        """
        from dml.api.report import curve, page  # matplotlib takes a second to import

        place = check_output(folder)
        write_json(place / "result.json", self.to_dict())
        with atomic(place / "outcomes.csv") as partial:
            self.outcomes.to_csv(partial, index=False, float_format="%.6f")
        remove(place / "adversarial.npz")  # of an earlier report
        if self.images is not None:
            with atomic(place / "adversarial.npz") as partial, partial.open("wb") as stream:
                np.savez_compressed(stream, **self.images._asdict())
        with atomic(place / "curve.png") as partial:
            partial.write_bytes(curve(self))
        write_text(place / "report.html", page(self))
        return place / "report.html"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else list(value) if isinstance(value, tuple) else str(value)
