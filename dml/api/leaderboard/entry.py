"""One model on the leaderboard: a JSON file under one schema, whose numbers must agree with each other."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from dml.api.similarity import Similarity
from dml.attacks.balls import radius_text
from dml.common.files import write_json
from dml.evaluation.statistics import wilson


def _link(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s\"'<>]+|[\w-][\w./-]*", value) or ".." in value:
        raise ValueError("it must be an address that begins with https://, or a file of this repository")
    return value


def _digest(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError("it must be a SHA-256: 64 hexadecimal digits")
    return value


Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200, pattern=r"^[^\r\n]*$")]
Link = Annotated[str, AfterValidator(_link)]
Digest = Annotated[str, AfterValidator(_digest)]
Part = Annotated[float, Field(ge=0, le=1)]


class _Record(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Share(_Record):
    """A mean over queries, and both ends of its 95% interval."""

    value: Part
    low: Part
    high: Part

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "Share":
        if not self.low <= self.value <= self.high:
            raise ValueError(f"the interval {self.low:.3f} to {self.high:.3f} does not hold the value {self.value:.3f}")
        return self


def share_of(survived: str) -> Share:
    """Return the share of queries that survive, from one digit per query, with Wilson's interval."""
    count = survived.count("1")
    low, high = wilson(count, len(survived))
    return Share(value=count / len(survived), low=low, high=high)


class Scores(_Record):
    """R@1 and MAP@R."""

    r1: Share
    map_r: Share


class Gates(_Record):
    """How many gates were run, and the names of those that do not hold."""

    run: Annotated[int, Field(ge=0)]
    failed: tuple[Line, ...]

    @property
    def word(self) -> Literal["hold", "fail", "not run"]:
        """What the page says of them."""
        return "fail" if self.failed else "hold" if self.run else "not run"


class Lowered(_Record):
    """A claim that lowered an entry.

    Attributes:
        by: who made it.
        queries: how many it broke that had survived.
        before: R@1 left without it.
        file_sha256: of the file of arrays.
    """

    by: Line
    queries: Annotated[int, Field(ge=1)]
    before: Part
    file_sha256: Digest


class Entry(_Record):
    """One model at one radius.

    Attributes:
        name, authors, link, training_data, architecture: of the model. ``link`` is an address or a file of this
            repository.
        model, images: what ``python -m dml evaluate`` takes for them, if others can have them.
        control: whether it is an untrained control.
        dataset: that it is attacked on. All entries of a dataset have the same queries and gallery.
        eps: radius of the l-inf ball, in pixels of [0, 1].
        suite, similarity, seed, queries, gallery, classes, shape: see :attr:`dml.api.result.Result.about`.
        settings: of a suite that is none of params.yaml; older entries have none.
        natural, worst_case: scores before and after the attack.
        survived: one digit per attacked query, by ascending row number: 1 if its worst image still finds its class.
        gates: signs of a failed attack at this radius.
        weights_sha256: of the model; None for a function without weights.
        images_sha256: of the natural queries.
        gallery_sha256: of the gallery's images, labels and groups; older entries have none.
        versions: of the software that measured.
        lowered: claims that lowered R@1, the first one first. MAP@R keeps its value, an upper bound.
    """

    name: Line
    authors: Line
    link: Link
    training_data: Line
    architecture: Line
    model: Line | None = None
    images: Line | None = None
    control: bool
    dataset: Line
    norm: Literal["linf"]
    eps: Annotated[float, Field(gt=0, le=1)]
    suite: Line
    settings: dict[str, Any] | None = None
    similarity: Similarity
    seed: int
    queries: Annotated[int, Field(ge=2)]
    gallery: Annotated[int, Field(ge=2)]
    classes: Annotated[int, Field(ge=2)]
    shape: tuple[int, int]
    natural: Scores
    worst_case: Scores
    survived: Annotated[str, StringConstraints(pattern="^[01]*$")]
    gates: Gates
    weights_sha256: Digest | None
    images_sha256: Digest
    gallery_sha256: Digest | None = None
    versions: dict[str, Line]
    lowered: tuple[Lowered, ...] = ()

    @pydantic.model_validator(mode="after")
    def _agrees(self) -> "Entry":
        left, count = self.worst_case.r1, self.survived.count("1")
        if len(self.survived) != self.queries:
            raise ValueError(f"survived has {len(self.survived)} digits for {self.queries} queries")
        if not math.isclose(left.value, count / self.queries, abs_tol=1e-9):
            raise ValueError(
                f"worst_case.r1 is {left.value:.6g}, but {count} of {self.queries} queries survive by `survived`"
            )
        for name, share in (("natural.r1", self.natural.r1), ("worst_case.r1", left)):
            ends = wilson(round(share.value * self.queries), self.queries)
            if not all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(ends, (share.low, share.high), strict=True)):
                raise ValueError(f"the interval of {name} is not Wilson's, {ends[0]:.6f} to {ends[1]:.6f}")
        if left.value > self.natural.r1.value:
            raise ValueError(f"worst_case.r1 is {left.value:.3f}, above the natural {self.natural.r1.value:.3f}")
        return self

    @property
    def radius(self) -> str:
        """The radius as people write it."""
        return radius_text(self.eps)

    @property
    def file_name(self) -> str:
        """The name of its file: by name, dataset and radius."""
        words = [re.sub(r"\W+", "_", word.lower()).strip("_") for word in (self.name, self.dataset)]
        return f"{'-'.join([*words, self.radius.replace('/', '_')])}.json"


def validated(values: Any, where: str) -> Entry:
    """Return an entry.

    Args:
        values: what JSON holds.
        where: they stand, for messages.

    Raises:
        ValueError: they are no entry; one sentence names the key and what would be right.
    """
    try:
        return Entry.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        told = first["msg"].removeprefix("Value error, ")
        if first["type"] == "missing":
            raise ValueError(f"{where} lacks the key {key}") from error
        if first["type"] == "extra_forbidden":
            raise ValueError(f"{where} has the key {key}, which no entry has") from error
        given = "" if isinstance(first["input"], dict) or not key else f" is {first['input']!r}"
        raise ValueError(f"{where}: {key}{given}{': ' if key else ''}{told}") from error


def read(file: Path) -> Entry:
    """Read an entry.

    Raises:
        ValueError: there is no such file, or it holds no entry; one sentence says what is wrong.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    entry = validated(values, str(file))
    if file.name != entry.file_name:
        raise ValueError(f"{file} must be named {entry.file_name}, after its name, dataset and eps")
    return entry


def read_all(folder: Path) -> list[Entry]:
    """Read all entries of a folder in the order of the page: by dataset, radius, and R@1 left, the highest first.

    Raises:
        ValueError: a file holds no entry, or two entries of a dataset have other queries.
    """
    entries = [read(file) for file in sorted(folder.glob("*.json"))]
    for entry in entries:
        comparable(entry, entries)
    return sorted(entries, key=lambda item: (item.dataset, item.eps, -item.worst_case.r1.value, item.name))


def comparable(entry: Entry, others: Iterable[Entry]) -> None:
    """Raise ValueError unless all entries of the same dataset have the same queries and gallery."""
    for other in others:
        for key in ("images_sha256", "queries", "gallery", "classes", "shape", "gallery_sha256"):
            ours, theirs = getattr(entry, key), getattr(other, key)
            if other.dataset == entry.dataset and ours != theirs and None not in (ours, theirs):
                raise ValueError(
                    f"{entry.name!r} has {key} {_short(ours)}, and {other.name!r} on {other.dataset} has "
                    f"{_short(theirs)}; evaluate the same {other.queries} queries (seed {other.seed}) of the same "
                    "images, or give the dataset another name"
                )


def write(entry: Entry, folder: Path) -> Path:
    """Write an entry to its file."""
    file = folder / entry.file_name
    write_json(file, entry.model_dump(mode="json"))
    return file


def join(entries: Iterable[Entry], folder: Path) -> list[Path]:
    """Write the entries of a report, all or none, beside those that are there.

    Every report of a dataset brings the same controls; of those the lowest R@1 left stays, and so do the claims that
    lowered one.

    Raises:
        ValueError: another entry has the name, dataset and radius of one, or those of its dataset have other queries.
    """
    entries, there = list(entries), {item.file_name: item for item in read_all(folder)}
    for place, item in enumerate(entries):
        if item.file_name in {other.file_name for other in entries[:place]}:
            raise ValueError(f"{item.file_name} would hold two entries of the report; choose another --name")
        held = there.get(item.file_name, item)
        if held.dataset != item.dataset:
            raise ValueError(
                f"{item.file_name} holds an entry of the dataset {held.dataset!r}, and {item.dataset!r} would have the "
                "same file; give the dataset that name, or one of other letters"
            )
    new = [item for item in entries if not (item.control and _is_lower(there.get(item.file_name), item))]
    for item in new:
        held = there.get(item.file_name, item)
        other = item if item.control and held.control else held
        different = [key for key in Entry.model_fields if getattr(other, key) != getattr(item, key)]
        if different:
            raise ValueError(
                f"{item.file_name} holds another entry of this name: it differs in {', '.join(different)}; choose "
                "another --name, or delete the file if this one replaces it"
            )
        comparable(item, there.values())
    return [write(_with_claims(item, there.get(item.file_name)), folder) for item in new]


def _with_claims(item: Entry, held: Entry | None) -> Entry:
    """Return a control with the claims that lowered its entry before, and without the queries that broke then."""
    if held is None or not held.lowered:
        return item
    survived = "".join(map(min, item.survived, held.survived))
    worst = Scores(r1=share_of(survived), map_r=item.worst_case.map_r)
    return item.model_copy(update={"lowered": held.lowered, "survived": survived, "worst_case": worst})


def _is_lower(there: Entry | None, item: Entry) -> bool:
    """Whether an entry of the same control is there that leaves as little as a new one."""
    return there is not None and there.control and there.worst_case.r1.value <= item.worst_case.r1.value


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) else str(value)
