"""Fetch and check the benchmarks, unpack archives of images, and group near duplicates.

python -m dml datasets check
python -m dml datasets fetch cub200
python -m dml datasets unpack flowers.tar flowers
python -m dml datasets group flowers
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
from dml.common.table import find
from dml.data.base import DatasetError, Source
from dml.data.benchmarks import BENCHMARKS
from dml.data.grouping_files import write_groups
from dml.data.sources import SOURCES
from dml.data.sources.benchmark import Benchmark, Remote
from dml.data.unpack import unpack

BLOCK = 2**20  # bytes written at a time


def fetch(benchmark: Benchmark, folder: Path) -> bool:
    """Download the files that the publisher serves, and say where to find the others.

    Returns:
        Whether the folder holds all files afterwards.

    Raises:
        DatasetError: a download failed, or gave another file than the published one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{benchmark.name}: {benchmark.terms}")
    for remote in benchmark.files:
        target = folder / remote.name
        if target.exists():
            print(f"{target} exists")
        elif remote.url is None:
            print(f"{remote.name} ({remote.size}) is no longer served by its publisher")
        else:
            download(remote, target)
    lacking = [remote.name for remote in benchmark.files if not (folder / remote.name).exists()]
    if lacking:
        print(f"put {' and '.join(lacking)} into {folder}: {benchmark.help}")
    return not lacking


def download(remote: Remote, target: Path) -> None:
    """Download one file with a progress bar. A download that was cut off continues; a wrong file is not kept.

    Raises:
        DatasetError: the server cannot be reached, or the file is not the published one.
    """
    try:
        pooch.retrieve(remote.url, remote.digest, target.name, target.parent, downloader=_continued)
    except ValueError as error:  # pooch raises it for a wrong digest, and removes the file
        raise DatasetError(f"{remote.url} gave another file than the published one; it was not kept") from error
    except (requests.RequestException, OSError) as error:
        raise DatasetError(
            f"{remote.url} cannot be read ({type(error).__name__}); try again, the download continues"
        ) from error
    print(f"{target} is complete")


def _continued(url: str, output: str | Path, pup: pooch.Pooch | None) -> None:
    """A downloader for pooch that continues after a cut; those of pooch start over."""
    place = Path(pup.path if pup else Path(output).parent)
    partial = place / f".{hashlib.sha256(url.encode()).hexdigest()[:16]}.partial"
    have = partial.stat().st_size if partial.exists() else 0
    with requests.get(url, headers={"Range": f"bytes={have}-"} if have else {}, stream=True, timeout=30) as answer:
        if answer.status_code != requests.codes.requested_range_not_satisfiable:  # else the file is complete already
            answer.raise_for_status()
            if answer.status_code != requests.codes.partial_content:
                have = 0  # this server only serves whole files
            total = have + int(answer.headers.get("Content-Length", 0)) or None
            with partial.open("ab" if have else "wb") as stream, _bar(url.rsplit("/", 1)[-1], have, total) as bar:
                for block in answer.iter_content(BLOCK):
                    stream.write(block)
                    bar.update(len(block))
    shutil.move(partial, output)


def _bar(name: str, have: int, total: int | None) -> tqdm:
    return tqdm(desc=name, initial=have, total=total, unit="B", unit_scale=True, unit_divisor=1024, mininterval=2)


def check(name: str, folder: Path, **options: object) -> bool:
    """Say whether a benchmark is complete: the published counts, and every image readable.

    Args:
        name: a key of ``SOURCES``.
        folder: to read.
        options: further arguments of the source.
    """
    try:
        source: Source = find(SOURCES, name, "source")(folder, **options)
        rows = np.arange(len(source.labels))
        for _, make in tqdm(source.tasks(rows), total=len(rows), desc=f"checking {name}", unit="image", mininterval=5):
            make(1)  # decoded at the least size
    except DatasetError as error:
        print(f"{name}: {error}")
        return False
    classes = len(source.class_names)
    print(f"{name}: complete, {len(rows):,} images of {classes:,} classes ({source.train_classes:,} for training)")
    return True


def main(arguments: list[str]) -> int:
    """Run one of the commands; returns the exit status, 0 if everything asked for is there."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m dml datasets", description=summary)
    commands = parser.add_subparsers(dest="command", required=True)
    for word, text in (("fetch", "download a benchmark, or say where to get it"), ("check", "say what is complete")):
        command = commands.add_parser(word, help=text)
        command.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; all if none is given")
    command = commands.add_parser("unpack", help="unpack an archive of images and a labels.csv below data/")
    command.add_argument("archive", type=Path)
    command.add_argument("name", help="name of the dataset and of its folder")
    command = commands.add_parser("group", help="join near duplicates of a folder below data/ into groups")
    command.add_argument("name", help="name of the dataset and of its folder")
    command.add_argument("--threshold", type=float, help="of the ratio; chosen on training classes if not given")
    command.add_argument("--train-fraction", type=float, default=0.5, help="as in the recipe; .5 if not given")
    chosen = parser.parse_args(arguments)
    if chosen.command == "group":
        return _status(lambda: _grouped(chosen.name, chosen.train_fraction, chosen.threshold))
    if chosen.command == "unpack":
        return _status(lambda: _unpacked(chosen.archive, chosen.name))
    for name in chosen.names:
        if name not in BENCHMARKS:
            parser.error(f"{name!r} is no benchmark; known: {', '.join(BENCHMARKS)}")
    names = chosen.names or list(BENCHMARKS)
    act = fetch if chosen.command == "fetch" else lambda benchmark, folder: check(benchmark.name, folder)
    # One that cannot be reached does not hide the others.
    return max(_status(lambda name=name: act(BENCHMARKS[name], ROOT / "data" / name)) for name in names)


def _unpacked(archive: Path, name: str) -> bool:
    images = unpack(archive, ROOT / "data" / name)
    print(f"data/{name} holds {images:,} images; a recipe of params.yaml with path: data/{name} trains on them")
    return True


def _grouped(name: str, train_fraction: float, threshold: float | None) -> bool:
    page = ROOT / "artifacts" / "groups" / f"{name}.png"
    found = write_groups(ROOT / "data" / name, train_fraction, threshold, page)
    sizes = np.bincount(found.groups)
    print(
        f"data/{name}/labels.csv: {(sizes > 1).sum():,} groups of two or more images, the largest of {sizes.max()}; "
        f"they hold {found.share(found.training):.1%} of the training images and "
        f"{found.share(~found.training):.1%} of the test images (threshold {found.threshold:.3f})"
    )
    if found.short:
        print(f"joined less, so that a query can find something: {', '.join(found.short)}")
    print(f"look at {page.relative_to(ROOT)}; if the pairs are no twins, give a lower --threshold")
    return True


def _status(act: Callable[[], bool]) -> int:
    """The exit status of a command; a DatasetError is printed in one line."""
    try:
        return 0 if act() else 1
    except DatasetError as error:
        print(f"DatasetError: {error}", file=sys.stderr)
        return 1
