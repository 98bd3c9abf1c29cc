"""Adversarial images that somebody claims break an entry: verified one by one, and counted if they do."""

import hashlib
import tokenize
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dml.api.about import gallery_sha256, images_sha256
from dml.api.checks import answerable
from dml.api.embedding import Embedding, lent, weights_sha256
from dml.api.evaluate import attacked
from dml.api.full_precision import full_precision
from dml.api.leaderboard.entry import Entry, Lowered, Scores, share_of, validated
from dml.api.similarity import SimilaritySearch, search_over
from dml.api.wrap import as_module
from dml.attacks.balls import Linf
from dml.common.files import DAMAGED
from dml.data.base import Split
from dml.data.transforms import to_float
from dml.retrieval.metrics import per_query

SLACK = 1e-6  # rounding that an array may leave the ball by; what is ranked is its projection into the exact ball
SHOWN = 5  # arrays that a sentence names
FLOATS = ("float16", "float32", "float64")
CHUNK = 100  # arrays ranked at a time
MOST_CHANGED = 1  # natural queries that rounding on another machine may change


class Claim(NamedTuple):
    """Arrays of one file.

    Attributes:
        rows: (B,) numbers of the queries.
        adversarial: (B, 3, H, W) float32 or float64.
        images: (B, 3, H, W), the natural queries that they began with, or None.
        sha256: of the file.
    """

    rows: np.ndarray
    adversarial: np.ndarray
    images: np.ndarray | None
    sha256: str


class Verdict(NamedTuple):
    """What a claim comes to.

    Attributes:
        entry: lowered, or as it was.
        broken: numbers of the queries that survived before.
        sentences: one per condition that some arrays fail.
    """

    entry: Entry
    broken: list[int]
    sentences: list[str]


def read(file: Path) -> Claim:
    """Read ``rows``, ``adversarial`` and, if there, ``images`` of an npz file, such as a report's.

    Raises:
        ValueError: the file is no such archive, or an array has another shape or type.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("rows", "adversarial", "images") if name in stored.files}
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except (*DAMAGED, AttributeError, TypeError, SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"{file} cannot be read as an npz file: {error}") from error
    for name in ("rows", "adversarial"):
        if name not in arrays:
            raise ValueError(
                f"{file} lacks the array {name!r}; it must hold `rows` (B,) and `adversarial` (B, 3, H, W)"
            )
    rows, adversarial, images = (arrays.get(name) for name in ("rows", "adversarial", "images"))
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(f"{file}: rows is {rows.dtype} {rows.shape}; it must hold one whole number per array")
    for name, array in (("adversarial", adversarial), ("images", images)):
        if array is not None and (array.ndim != 4 or len(array) != len(rows) or array.dtype not in FLOATS):
            raise ValueError(
                f"{file}: {name} is {array.dtype} {array.shape}; it must hold floats ({len(rows)}, 3, H, W) in [0, 1]"
            )
    return Claim(rows.astype(np.int64), adversarial, images, digest)


def check(
    entry: Entry, claim: Claim, embed: Callable[[Tensor], Any], split: Split, asked: Split | None, *, by: str
) -> Verdict:
    """Verify arrays, and count the queries that they break.

    An array counts if it belongs to an attacked query, holds numbers in [0, 1], lies in the ball around the natural
    image, and the exact ranking of the whole gallery answers it wrongly. Others are named, and change nothing.

    Args:
        entry: that the arrays claim to break.
        claim: the arrays.
        embed: the model of the entry.
        split, asked: the gallery, and the queries apart from it, see :func:`dml.api.images.splits`.
        by: who makes the claim.

    Raises:
        ValueError: images or model are not those of the entry.
    """
    queries = split if asked is None else asked
    rows, embed = _rows(entry, split, asked), as_module(embed)
    if entry.weights_sha256 is not None and weights_sha256(embed) != entry.weights_sha256:
        raise ValueError(f"the model has other weights than {entry.name!r} (SHA-256 {entry.weights_sha256[:12]}...)")
    survived = {int(row): digit == "1" for row, digit in zip(np.sort(rows), entry.survived, strict=True)}
    failed = _outside(claim, survived, queries, entry.eps)
    usable = np.array([place for place in range(len(claim.rows)) if place not in failed], np.int64)
    with full_precision(), lent(embed, None) as device:
        search = search_over(Embedding(embed, device), split, asked, entry.similarity)
        _same_model(search, entry, rows)
        fooled = _fooled(search, claim, usable, entry.eps)
    failed |= {
        int(place): "do not fool the model, whose nearest item is of the right class" for place in usable[~fooled]
    }
    broken = sorted({int(row) for row in claim.rows[usable[fooled]] if survived[int(row)]})
    failed |= {
        int(place): "belong to queries that the entry counts as broken already"
        for place in usable[fooled]
        if not survived[int(claim.rows[place])]
    }
    return Verdict(_lowered(entry, survived, broken, by, claim.sha256), broken, _sentences(failed, claim.rows))


def are_of(entry: Entry, split: Split, asked: Split | None) -> bool:
    """Return whether these are the images of an entry."""
    try:
        _rows(entry, split, asked)
    except ValueError:
        return False
    return True


def _rows(entry: Entry, split: Split, asked: Split | None) -> np.ndarray:
    """Numbers of the attacked queries, in the order of the attack.

    Raises:
        ValueError: the images are not those evaluated.
    """
    queries = split if asked is None else asked
    usable = answerable(split, asked, [])
    rows = attacked(usable, queries, entry.queries, entry.seed)
    same = (len(rows), len(split), len(split.classes)) == (entry.queries, entry.gallery, entry.classes)
    if not same or images_sha256(queries, rows) != entry.images_sha256:
        raise ValueError(
            f"the images are not those evaluated: {entry.name!r} has {entry.queries} queries with SHA-256 "
            f"{entry.images_sha256[:12]}... in a gallery of {entry.gallery:,} images in {entry.classes:,} classes"
        )
    if entry.gallery_sha256 is not None and gallery_sha256(split) != entry.gallery_sha256:
        raise ValueError(
            f"the gallery is not the one searched: that of {entry.name!r} has SHA-256 {entry.gallery_sha256[:12]}... "
            "over images, labels and groups"
        )
    return rows


def _outside(claim: Claim, survived: dict[int, bool], queries: Split, eps: float) -> dict[int, str]:
    """Places of the arrays that may not be used, and why."""
    found: dict[int, str] = {}
    for place, row in enumerate(claim.rows.tolist()):
        moved = claim.adversarial[place].astype(np.float64)
        if row not in survived:
            found[place] = "belong to no attacked query"
            continue
        natural = to_float(queries.images[[row]])[0].numpy().astype(np.float64)
        if moved.shape != natural.shape:
            found[place] = f"have another shape than their query, {natural.shape}"
        elif claim.images is not None and not _same(claim.images[place], natural):
            found[place] = "began with another image than the query that was evaluated"
        elif not np.isfinite(moved).all():
            found[place] = "hold NaN or infinity"
        elif moved.min() < 0 or moved.max() > 1:
            found[place] = "leave [0, 1]"
        elif np.abs(moved - natural).max() > eps + SLACK:
            found[place] = "leave the l-inf ball around their query"
    return found


def _same(image: np.ndarray, natural: np.ndarray) -> bool:
    return image.shape == natural.shape and np.allclose(image, natural, rtol=0, atol=SLACK)


def _same_model(search: SimilaritySearch, entry: Entry, rows: np.ndarray) -> None:
    """Raise ValueError unless the natural queries have the entry's R@1: normalisation, too, must be the entry's."""
    parts = [rows[first : first + CHUNK] for first in range(0, len(rows), CHUNK)]
    right = sum(int((search.margin(search.images(part), search.queries(part)) < 0).sum()) for part in parts)
    if abs(right - round(entry.natural.r1.value * len(rows))) > MOST_CHANGED:
        raise ValueError(
            f"the model is not the one evaluated: its natural R@1 is {right / len(rows):.3f}, and that of "
            f"{entry.name!r} {entry.natural.r1.value:.3f}"
        )


@torch.no_grad()
def _fooled(search: SimilaritySearch, claim: Claim, places: np.ndarray, eps: float) -> np.ndarray:
    """(B,) bool: whether the exact ranking answers the arrays of some places wrongly."""
    found = [np.empty(0, bool)]
    for first in range(0, len(places), CHUNK):
        some = places[first : first + CHUNK]
        rows = claim.rows[some]
        natural = search.images(rows)
        moved = torch.from_numpy(np.stack(list(claim.adversarial[some]))).to(natural)
        exact = Linf(eps).project(moved, natural)
        found.append(~per_query(search.model(exact), search.queries(rows), search.gallery).r1.cpu().numpy())
    return np.concatenate(found)


def _lowered(entry: Entry, survived: dict[int, bool], broken: list[int], by: str, sha256: str) -> Entry:
    if not broken:
        return entry
    digits = "".join("1" if value and row not in broken else "0" for row, value in survived.items())
    claim = Lowered(by=by, queries=len(broken), before=entry.worst_case.r1.value, file_sha256=sha256)
    changed = {
        "survived": digits,
        "worst_case": Scores(r1=share_of(digits), map_r=entry.worst_case.map_r).model_dump(),
        "lowered": [item.model_dump() for item in (*entry.lowered, claim)],
    }
    return validated(entry.model_dump() | changed, entry.name)


def _sentences(failed: dict[int, str], rows: np.ndarray) -> list[str]:
    """One sentence per condition, with the arrays that fail it."""
    found = []
    for why in dict.fromkeys(failed.values()):
        places = sorted(place for place, told in failed.items() if told == why)
        named = ", ".join(f"{place} (query {rows[place]})" for place in places[:SHOWN])
        more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
        found.append(f"Arrays that {why}: {named}{more}.")
    return found
