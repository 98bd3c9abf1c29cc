"""Records: the JSON of one model under one suite, and which of them the present settings and code would make again."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dml.common.files import write_json

Record = dict[str, Any]
"""What one suite found of one model; see ``MUST`` for its keys. ``map_r`` is there if MAP@R was attacked.

``surrogates`` is there if gates tried the images of other models: the digest of the weights of each.
"""

KEYS = ("dataset", "loss", "defense", "seed", "suite")
DIGESTS = ("training", "evaluation")
ROW = ("attack", "norm", "eps", "queries", "r1", "r1_low", "r1_high", "map_r")
GATE = ("gate", "eps", "measured", "limit", "passed")
MUST = (
    *KEYS,
    "digests",  # of all settings and code: "training" without the seed, "evaluation" without the model
    "natural",  # queries, r1, r2, r4, r8, r_precision, map_r over the whole test half
    "embedding",  # how it fills its sphere; empty if that was not measured
    "rows",  # one per attack and radius: the attacked queries
    "scores",  # further figures by name
    "gates",  # empty if none were run
    "survival",  # radius -> one character per query: 1 survives, 0 is broken
    "claims",  # whether claims rest on the suite
    "alone",  # whether every attack ran on every query
    "settings",  # that made it, as in params.yaml
    "embedded",  # images that the training embedded, its adversary's included; None for a control
)
LOWERED = "map"  # the attack whose rows are the adversarial MAP@R
MACHINE = ".machine.json"  # beside a record: device, versions and seconds, on which nothing depends
SHARE = re.compile(r"0\.\d{4}|1\.0000")
Expected = Mapping[tuple[str, str, str, str], Mapping[str, str] | None]
"""(dataset, loss, defense, suite) -> digests of the present settings and code, or None if there are none now."""


class Stale(NamedTuple):
    """A record that the present settings and code would not make again, and why."""

    record: Record
    reason: str


def run_key(record: Record) -> tuple[str, str, str, str]:
    """Return what decides a record's digests: dataset, loss, defence and suite."""
    return record["dataset"], record["loss"], record["defense"], record["suite"]


def eps_key(eps: float) -> str:
    """Return the key of a radius in ``survival``."""
    return f"{eps:.6f}"


def check(record: Mapping[str, Any]) -> None:
    """Raise ValueError if a record lacks a key, or a part of it does; the sentence names the key."""
    _has(record, MUST, "")
    _has(record["digests"], DIGESTS, "digests.")
    _has(record["natural"], ("queries", "r1", "map_r"), "natural.")
    for part, keys in (("rows", ROW), ("gates", GATE)):
        if not isinstance(record[part], list):
            raise ValueError(f"{part} is {type(record[part]).__name__}; it must be a list")
        for place, item in enumerate(record[part]):
            _has(item, keys, f"{part}[{place}].")
    for part in ("survival", "map_r"):
        _has(record.get(part, {}), (), part)
    for eps, marks in record["survival"].items():
        if not re.fullmatch(r"\d+\.\d{6}", eps) or set(marks) - {"0", "1"}:
            raise ValueError(f"survival[{eps!r}] must map a radius with six decimals to a string of 0 and 1")
    for eps, line in record.get("map_r", {}).items():
        values = line.split()
        right = len(values) == len(record["survival"].get(eps, "")) and all(map(SHARE.fullmatch, values))
        if not right:
            raise ValueError(f"map_r[{eps!r}] must hold one share of four decimals for each query of survival[{eps!r}]")


def write(file: Path, record: Record, machine: Mapping[str, Any]) -> None:
    """Write a record, and beside it what no other stage may depend on.

    Args:
        file: ``.../<suite>.json``; the other file is ``.../<suite>.machine.json``.
        record: see ``MUST``.
        machine: device, versions and seconds.

    Raises:
        ValueError: the record lacks a key; nothing is written.
    """
    record = {key: value for key, value in record.items() if key != "machine"}
    check(record)
    write_json(_machine_file(file), machine)
    write_json(file, record)


def read(*folders: Path) -> list[Record]:
    """Read the records below some folders, in the order of their paths; a later folder's replace an earlier's.

    Each gets a key ``machine`` with what lies beside it, empty if nothing does. Records from before digests were kept
    are read too: :func:`split_stale` sorts them out.

    Raises:
        ValueError: a file is no record, or two files hold the same run; the sentence names the file.
    """
    files = {
        file.relative_to(folder): file
        for folder in folders
        for file in sorted(folder.rglob("*.json"))
        if not file.name.endswith(MACHINE)
    }
    found: dict[tuple[Any, ...], Path] = {}
    records = []
    for _, file in sorted(files.items()):
        record = _read(file)
        key = tuple(record[name] for name in KEYS)
        if key in found:
            raise ValueError(f"{file} and {found[key]} hold the same run; remove one of them")
        found[key] = file
        records.append(record)
    return records


def split_stale(records: Sequence[Record], expected: Expected) -> tuple[list[Record], list[Stale]]:
    """Split records into current ones and stale ones; tables and figures take current ones only.

    Args:
        records: as :func:`read` returns them.
        expected: digests of the present settings and code, by :func:`run_key`.
    """
    current, stale = [], []
    for record in records:
        reason = _reason(record.get("digests"), expected.get(run_key(record)))
        if reason:
            stale.append(Stale(record, reason))
        else:
            current.append(record)
    return current, stale


def _reason(digests: Mapping[str, str] | None, wanted: Mapping[str, str] | None) -> str:
    """Why digests are not the wanted ones; empty if they are."""
    if digests is None:
        return "recorded without digests of its settings and code"
    if wanted is None:
        return "params.yaml has no such run"
    words = {"training": "trained", "evaluation": "evaluated"}
    differ = [word for name, word in words.items() if digests[name] != wanted[name]]
    return f"{' and '.join(differ)} with other settings or code" if differ else ""


def _read(file: Path) -> Record:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    try:
        _has(record, KEYS, "")
        if "digests" in record:
            check(record)
    except ValueError as error:
        raise ValueError(f"{file} is not a record: {error}") from error
    machine = _machine_file(file)
    try:
        record["machine"] = json.loads(machine.read_text(encoding="utf-8")) if machine.exists() else {}
    except ValueError as error:
        raise ValueError(f"{machine} is not valid JSON: {error}") from error
    return record


def _machine_file(file: Path) -> Path:
    return file.with_name(f"{file.stem}{MACHINE}")


def _has(part: Any, keys: Sequence[str], where: str) -> None:
    if not isinstance(part, Mapping):
        raise ValueError(f"{where.rstrip('.') or 'it'} is {type(part).__name__}; it must hold keys and values")
    missing = [key for key in keys if key not in part]
    if missing:
        raise ValueError(f"it lacks the key '{where}{missing[0]}'")
