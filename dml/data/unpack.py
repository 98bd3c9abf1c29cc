"""Unpacks an archive of images with a labels.csv into a folder that the source ``folder`` reads."""

import shutil
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from dml.data.base import DatasetError
from dml.data.sources.archives import DAMAGED
from dml.data.sources.folder import read_folder

ENTRY = 4096  # bytes that even an empty file takes on a disk, about
ANY_ARCHIVE = 100 * 2**20  # bytes that any archive may unpack to
MOST_TIMES = 100  # its own size that a larger one may unpack to: images hardly compress


def unpack(archive: Path, folder: Path) -> int:
    """Unpack the part of an archive (tar, compressed or not, or zip) that holds ``labels.csv`` as ``folder``.

    All or nothing: the table is checked first, and that every file it lists is there.

    Returns:
        The number of images listed.

    Raises:
        DatasetError: the folder exists; the archive is damaged, has a path that leads out of it, or unpacks to more
            than images could, or than the disk has room for; it holds no or more than one labels.csv; or the table
            lists a file that it lacks.
    """
    if not archive.is_file():
        raise DatasetError(f"{archive} does not exist; give the path of a tar or zip archive")
    if folder.exists():
        raise DatasetError(f"{folder} exists; remove it to unpack {archive.name} there")
    place = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(place, ignore_errors=True)  # left by a killed run
    place.mkdir(parents=True)
    try:
        _extract(archive, place)
        tables = list(place.rglob("labels.csv"))
        if len(tables) != 1:
            raise DatasetError(f"{archive} holds {len(tables)} files labels.csv; it must hold one, beside its images")
        try:
            images = len(read_folder(tables[0].parent).labels)
        except DatasetError as error:  # name the archive, since the folder will be gone
            raise DatasetError(f"{archive}: {str(error).replace(f'{tables[0].parent}/', '')}") from error
        tables[0].parent.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return images


def _check_entries(archive: Path, place: Path, entries: Iterable[tuple[str, int]]) -> None:
    """Raises DatasetError at the first name that leads out, or size that is too much: before anything is unpacked."""
    most, free, total = max(ANY_ARCHIVE, MOST_TIMES * archive.stat().st_size), shutil.disk_usage(place).free, 0
    for name, size in entries:
        if name.startswith("/") or ".." in Path(name).parts:
            raise DatasetError(f"{archive} has the path {name}, which leads out of it; do not use it")
        total += max(size, ENTRY)
        if total > most:
            raise DatasetError(f"{archive} unpacks to more than {most / 1e6:,.0f} MB, unlike images; do not use it")
        if total > free:
            raise DatasetError(f"{archive} needs more than the {free / 1e6:,.0f} MB free in {place.parent}; make room")


def _extract(archive: Path, place: Path) -> None:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                _check_entries(archive, place, ((item.filename, item.file_size) for item in opened.infolist()))
                opened.extractall(place)
        else:
            with tarfile.open(archive) as opened:
                _check_entries(archive, place, ((item.name, item.size) for item in opened))
                opened.extractall(place, filter="data")
    except tarfile.FilterError as error:
        raise DatasetError(
            f"{archive} has the path {error.tarinfo.name}, which leads out of it or is no file; do not use it"
        ) from error
    except (*DAMAGED, RuntimeError) as error:  # RuntimeError: a zip with a password
        raise DatasetError(f"{archive} cannot be unpacked as a tar or zip archive ({error}); get it again") from error
