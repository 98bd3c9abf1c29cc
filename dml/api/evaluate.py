"""`dml.evaluate`: attack a retrieval model of any kind and say what it keeps."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from dml.api import attack, suites
from dml.api.about import about as told
from dml.api.checks import answerable, check_embedding, check_finite, check_module, copies
from dml.api.controls import controls as built
from dml.api.embedding import Embedding, lent, progress, weights_sha256
from dml.api.full_precision import full_precision
from dml.api.gates import more_gates
from dml.api.images import splits, training_data
from dml.api.loading import KEPT, Prepare, check_output
from dml.api.pixels import Side
from dml.api.result import Fooled, Images, Result, fooled_searches
from dml.api.similarity import SIMILARITIES, Similarity, SimilaritySearch, search_over
from dml.api.summary import MODEL, natural_scores
from dml.api.wrap import as_module
from dml.common.checks import known
from dml.common.processes import alone, to_nobody
from dml.data.base import Split
from dml.data.sampling import attacked_rows
from dml.evaluation import CONTROLS, gates
from dml.evaluation.suites.base import Suite
from dml.reporting.spelling import count

AT_ONCE = 100  # queries whose natural images are read at a time


def evaluate(
    embed: Callable[[Tensor], Any],
    images: Any = None,
    labels: Any = None,
    *,
    queries: Any = None,
    gallery: Any = None,
    groups: Any = None,
    training: Any = None,
    eps: float | str | Sequence[float | str] | None = None,
    norm: attack.Norm = "linf",
    suite: str | Mapping[str, Any] = "quick",
    limit: int | None = None,
    ranks: Sequence[int] = attack.RANKS,
    similarity: Similarity = "cosine",
    size: Side | None = None,
    transform: Prepare | None = None,
    controls: Sequence[str] | None = tuple(CONTROLS),
    seed: int = 0,
    device: torch.device | str | None = None,
    folder: str | Path | None = None,
    report: Callable[[str], None] | None = print,
) -> Result:
    """Attack the queries of a retrieval model within an l-inf or l2 ball, and say how many it still answers.

    A suite finds the same as in the pipeline, query by query. Only images above 72 x 72 pixels (289 x 289 on a GPU) get
    other random starts: fewer than a hundred go through the model at a time, and each chunk of queries draws its own.

    Args:
        embed: a module or any function from images (B, 3, H, W) in [0, 1] to embeddings (B, D). A module, or that of a
            method such as ``clip.encode_image``, is moved and put into evaluation mode for the duration, and comes back
            as it was. One that wants normalised images goes through :func:`dml.wrap`.
        images, labels: each image is a query to all others. Images are a float tensor (N, 3, H, W) in [0, 1], a uint8
            array (N, H, W, 3), a dataset, a folder with one sub-folder per class or a labels.csv, or a dataset that
            this repository prepared (``artifacts/data/NAME``: its test classes); folders bring their labels, and
            datasets may. Above an eighth of the machine's memory a dataset or folder is read anew by the model and by
            each control; what this repository prepared is mapped into memory.
        queries, gallery: two pairs (images, labels), or two datasets or folders, instead.
        groups: (N,) track, burst or camera of each image: a query never finds images of its class and group, as
            re-identification has it; for two sets a pair. A folder has them in the column ``group`` of its labels.csv.
        training: a pair (images, labels), a dataset or a folder of other classes than those attacked; the control
            ``pixels_linear`` is fitted to them. A prepared dataset given as ``images`` brings its training classes, and
            so does a folder whose labels.csv has a column ``train``.
        eps: radius or radii, in pixels of [0, 1], as numbers or as text such as "8/255"; None takes the suite's.
        norm: ``linf``, or ``l2`` of a whole image's perturbation. There are no gates for l2, and eps must be given.
        suite: ``quick``, ``auto``, ``paper``, ``ranking``, ``poisoning``, another list of params.yaml, or settings as
            there, of kind ``attacks`` by default. If it wants more queries than there are, it takes all.
        limit: how many queries to attack instead. Natural R@k and MAP@R of all of them are told in any case.
        ranks: the k of each R@k that is told beside R@1, such as (10, 100, 1000).
        similarity: ``cosine``, ``dot`` or ``euclidean``: what the search ranks by.
        size, transform: for the images of a folder or a dataset: the central square after the shorter side was resized
            to this, the whole image resized to (height, width), or any function, for example the one that your own
            evaluation has.
        controls: embedders that meet the same attacks on the same queries; () or None for none. Those whose boxes of
            pixels do not divide the images are left out, and ``pixels_linear`` without training images. Unlike the
            pipeline's, histograms look at images above 64 pixels after averaging them, which an attack takes far less
            time for.
        seed: of the choice of queries, of the attacks and of the fit.
        device: None takes the GPU if there is one. A GPU computes in full float32, without TF32.
        folder: keeps what is finished; the same call again continues there.
        report: receives one line per finished chunk of queries; None for silence.

    Raises:
        ValueError: an argument cannot be used, or the model cannot be attacked so; one sentence says why.
    """
    embed, notes, report, controls = as_module(embed), [], report or to_nobody, controls or ()
    check_module(embed, notes)
    unfinished = None if folder is None else check_output(folder)
    known("similarity", similarity, SIMILARITIES)
    chosen, ranks = suites.chosen(suite, eps, limit, norm), attack.checked_ranks(ranks)
    split, asked = splits(images, labels, queries, gallery, groups, size=size, transform=transform)
    usable = answerable(split, asked, notes)
    rows = attacked(usable, split if asked is None else asked, chosen.queries, seed)
    data = training_data(training, images, (queries, gallery), size, transform, notes) if controls else None
    beside = built(controls, split, data, seed, report, notes)
    start = perf_counter()
    # In a group of processes one may evaluate while the others wait, or each evaluates its own model.
    with alone(), full_precision(), lent(embed, device) as place:
        embedding = Embedding(embed, place)
        has_gradient = check_embedding(embedding, split, notes)
        chosen = suites.possible(chosen, suite, similarity, norm, has_gradient, notes)
        for note in notes:
            warnings.warn(note, UserWarning, stacklevel=2)
        search = _searched(embedding, split, asked, similarity, rows, report)
        for found in filter(None, (suites.left_out(chosen, search), copies(search, rows))):
            notes.append(found)
            warnings.warn(found, UserWarning, stacklevel=2)
        report(f"{len(rows)} of {len(search):,} queries, gallery of {len(split):,}, on {place}{_then(beside)}")
        about = told(search, chosen, rows, ranks, seed, similarity, norm, suite, has_gradient)
        about |= {"weights_sha256": weights_sha256(embed), "transformed": transform is not None}
        about["natural"] = natural_scores(search, usable, ranks)
        kept = None if unfinished is None else unfinished / about["key"]
        run = _Run(search, chosen, rows, norm, ranks, seed, kept, report)
        cost: dict[str, float] = {"continued": run.folder is not None and run.folder.exists()}
        outcomes, scores, changed, fooled = run.model()
        checked = run.gates(outcomes)
        cost |= {"forward": embedding.forwards, "backward": embedding.backwards, "seconds": perf_counter() - start}
        tables = [outcomes.assign(model=MODEL)]
        tables += [run.control(name, control, place).assign(model=name) for name, control in beside.items()]
    cost["seconds with controls"] = perf_counter() - start
    outcomes = _with_files(pd.concat(tables, ignore_index=True), search.query_split)
    return Result(about, outcomes, checked, scores, cost, notes, changed, fooled)


def _searched(
    embedding: Embedding,
    split: Split,
    asked: Split | None,
    similarity: Similarity,
    rows: np.ndarray,
    report: Callable[[str], None],
) -> SimilaritySearch:
    """The gallery and the queries as the model embeds them.

    Raises:
        ValueError: an embedding of the gallery or of an attacked query is not finite.
    """
    separate = asked is not None or similarity != "cosine"  # else an image has one vector as query and item
    with progress(embedding, len(split) + separate * len(split if asked is None else asked), report):
        search = search_over(embedding, split, asked, similarity)
        queries = search.query_embeddings
    check_finite(search.gallery.embeddings, "gallery embeddings")
    check_finite(queries[torch.from_numpy(rows)], "embeddings of queries")
    return search


def _then(beside: Mapping[str, nn.Module]) -> str:
    """What follows the model: the time left is told for one at a time."""
    return f"; then {count(len(beside), 'control')}" if beside else ""


def _with_files(outcomes: pd.DataFrame, asked: Split) -> pd.DataFrame:
    """Outcomes with the file of each query, if queries come from files."""
    files = getattr(asked, "files", None)
    return outcomes if files is None else outcomes.assign(file=files[outcomes["query"]])


def attacked(usable: np.ndarray, asked: Split, count: int, seed: int) -> np.ndarray:
    """Return the numbers of the attacked queries: the pipeline's, less those that have no answer.

    Args:
        usable: numbers of the queries that have an answer, see :func:`dml.api.checks.answerable`.
        asked: all queries.
        count: how many to attack.
        seed: of their order.
    """
    order = attacked_rows(len(asked), len(asked), seed)
    return order[np.isin(order, usable)][:count]


@dataclass(frozen=True)
class _Run:
    """One evaluation."""

    search: SimilaritySearch
    suite: Suite
    rows: np.ndarray
    norm: attack.Norm
    ranks: tuple[int, ...]
    seed: int
    folder: Path | None
    report: Callable[[str], None]

    def model(self) -> tuple[pd.DataFrame, dict[str, float], Images | None, list[Fooled]]:
        """Attack the model: outcomes, further scores, the perturbed images, and some fooled searches."""
        height, width = self.search.split.images.shape[1:3]
        shown = self.rows[: max(AT_ONCE, KEPT // (8 * 3 * height * width))]  # float32, and both natural and attacked
        found = self._attack(self.search, MODEL, MODEL, len(shown))
        if found.images is None:
            return found.outcomes, dict(found.scores), None, []
        if len(shown) < len(self.rows):
            self.report(f"keeps the images of the first {len(shown):,} queries: those of all would fill the memory")
        eps = max(self.suite.eps)
        clean = [self.search.images(part).cpu().numpy() for part in _parts(shown)]
        labels = np.array(self.search.query_split.class_names)[self.search.query_split.labels[shown]]
        images = Images(eps, shown, labels, np.concatenate(clean), found.images)
        return found.outcomes, dict(found.scores), images, fooled_searches(self.search, images, found.outcomes)

    def control(self, name: str, control: nn.Module, device: torch.device) -> pd.DataFrame:
        """Attack a control with the same attacks on the same queries."""
        digest = weights_sha256(control)  # one that is fitted to other images has other outcomes
        asked = self.search.query_split if self.search.apart else None
        search = search_over(Embedding(control.to(device), device), self.search.split, asked, "cosine")
        return self._attack(search, name, name if digest is None else f"{name} {digest[:16]}", 0).outcomes

    def gates(self, outcomes: pd.DataFrame) -> pd.DataFrame:
        """Look for signs that the attack failed; an empty table for a suite that no claim rests on."""
        if not self.suite.claims:
            return pd.DataFrame(columns=gates.Gate._fields)
        own = outcomes[(outcomes["attack"] != attack.MAP) | (attack.MAP in self.suite.attacks)]
        place = self.folder / "gates" if self.folder else None
        found = gates.check(
            self.search, self.suite, own, seed=self.seed, surrogates={}, folder=place, report=self.report
        )
        return pd.concat([found, more_gates(self.search, outcomes, self.seed, self.report)], ignore_index=True)

    def _attack(self, search: SimilaritySearch, name: str, place: str, keep: int) -> attack.Attacked:
        folder = self.folder / place if self.folder else None
        given = {"norm": self.norm, "ranks": self.ranks, "seed": self.seed, "folder": folder, "keep": keep}
        return attack.run(search, self.suite, self.rows, **given, name=name, report=self.report)


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[first : first + AT_ONCE] for first in range(0, len(rows), AT_ONCE)]
