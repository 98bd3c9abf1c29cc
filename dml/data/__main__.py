"""Get the benchmarks, see what is there, and unpack sets of photographs.

python -m dml.data check
python -m dml.data fetch cub200
python -m dml.data unpack flowers.tar flowers
"""

import argparse
import hashlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pooch
import requests
from tqdm import tqdm

from dml.common.files import ROOT
from dml.data import BENCHMARKS, SOURCES, Benchmark, DatasetError, unpack
from dml.data.sources.benchmark import Remote

BLOCK = 2**20  # bytes written at a time


def fetch(benchmark: Benchmark, folder: Path) -> bool:
    """Download what the publisher serves and say where the rest is to be had; whether all is there afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{benchmark.name}: {benchmark.terms}")
    for remote in benchmark.files:
        target = folder / remote.name
        if target.exists():
            print(f"{target} is there")
        elif remote.url is None:
            print(f"{remote.name} ({remote.size}) is no longer served by its publisher")
        else:
            download(remote, target)
    lacking = [remote.name for remote in benchmark.files if not (folder / remote.name).exists()]
    if lacking:
        print(f"put {' and '.join(lacking)} into {folder}: {benchmark.help}")
    return not lacking


def download(remote: Remote, target: Path) -> None:
    """Get one file with a progress bar; what was cut off goes on where it was, and a wrong file is not kept.

    Raises:
        DatasetError: the server cannot be reached, or the file is not the published one.
    """
    try:
        pooch.retrieve(remote.url, remote.digest, target.name, target.parent, downloader=_go_on)
    except ValueError as error:  # pooch's word for a wrong digest; what it fetched is removed
        raise DatasetError(f"{remote.url} gave another file than the published one; it was not kept") from error
    except (requests.RequestException, OSError) as error:
        raise DatasetError(f"{remote.url} cannot be read ({type(error).__name__}); try again, it goes on") from error
    print(f"{target} is whole")


def _go_on(url: str, output: str | Path, pup: pooch.Pooch | None) -> None:
    """A downloader for pooch, whose own begin anew each time."""
    place = Path(pup.path if pup else Path(output).parent)
    partial = place / f".{hashlib.sha256(url.encode()).hexdigest()[:16]}.partial"
    have = partial.stat().st_size if partial.exists() else 0
    with requests.get(url, headers={"Range": f"bytes={have}-"} if have else {}, stream=True, timeout=30) as answer:
        if answer.status_code != requests.codes.requested_range_not_satisfiable:  # else it is all there already
            answer.raise_for_status()
            if answer.status_code != requests.codes.partial_content:
                have = 0  # this server does not go on in the middle
            total = have + int(answer.headers.get("Content-Length", 0)) or None
            with partial.open("ab" if have else "wb") as stream, _bar(url.rsplit("/", 1)[-1], have, total) as bar:
                for block in answer.iter_content(BLOCK):
                    stream.write(block)
                    bar.update(len(block))
    shutil.move(partial, output)


def _bar(name: str, have: int, total: int | None) -> tqdm:
    return tqdm(desc=name, initial=have, total=total, unit="B", unit_scale=True, unit_divisor=1024, mininterval=2)


def check(name: str, folder: Path, **options: object) -> bool:
    """Say what is there of a benchmark and whether it is whole: counts as published, every picture in place."""
    try:
        source = SOURCES[name](folder, **options)
        rows = np.arange(len(source.labels))
        for _ in tqdm(source.tasks(rows), total=len(rows), desc=f"checking {name}", unit="image", mininterval=5):
            pass
    except DatasetError as error:
        print(f"{name}: {error}")
        return False
    classes = len(source.class_names)
    print(f"{name}: whole, {len(rows):,} images of {classes:,} classes ({source.train_classes:,} for training)")
    return True


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 if what was asked for is there."""
    parser = argparse.ArgumentParser(prog="python -m dml.data", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for word, text in (("fetch", "download, or say where to get it"), ("check", "say what is there")):
        command = commands.add_parser(word, help=text)
        command.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all if none is given")
    command = commands.add_parser("unpack", help="make an archive of images and a labels.csv a folder below data/")
    command.add_argument("archive", type=Path)
    command.add_argument("name", help="of the dataset, and of its folder")
    chosen = parser.parse_args(arguments)
    if chosen.command == "unpack":
        return _told(lambda: _unpacked(chosen.archive, chosen.name))
    for name in chosen.names:
        if name not in BENCHMARKS:
            parser.error(f"{name!r} is no benchmark; known: {', '.join(BENCHMARKS)}")
    names = chosen.names or list(BENCHMARKS)
    act = fetch if chosen.command == "fetch" else lambda benchmark, folder: check(benchmark.name, folder)
    return _told(lambda: all([act(BENCHMARKS[name], ROOT / "data" / name) for name in names]))


def _unpacked(archive: Path, name: str) -> bool:
    images = unpack(archive, ROOT / "data" / name)
    print(f"data/{name} holds {images:,} images; a recipe of params.yaml with path: data/{name} trains on them")
    return True


def _told(act: Callable[[], bool]) -> int:
    """The exit status of an act: 0 if all was found; what is wrong with a dataset is said in one line."""
    try:
        return 0 if act() else 1
    except DatasetError as error:
        print(f"DatasetError: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
