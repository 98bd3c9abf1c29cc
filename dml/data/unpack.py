"""Unpacks an archive of images with a labels.csv into a folder that the source ``folder`` reads."""

import shutil
import tarfile
import zipfile
from pathlib import Path

from dml.data.base import DatasetError
from dml.data.sources.archives import DAMAGED
from dml.data.sources.folder import read_folder


def unpack(archive: Path, folder: Path) -> int:
    """Unpack the part of an archive (tar, compressed or not, or zip) that holds ``labels.csv`` as ``folder``.

    All or nothing: the table is checked first, and that every file it lists is there.

    Returns:
        The number of images listed.

    Raises:
        DatasetError: the folder exists; the archive is damaged, or has a path that leads out of it; it holds no or
            more than one labels.csv; or the table lists a file that it lacks.
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


def _extract(archive: Path, place: Path) -> None:
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                outside = [name for name in opened.namelist() if name.startswith("/") or ".." in Path(name).parts]
                if outside:
                    raise DatasetError(f"{archive} has the path {outside[0]}, which leads out of it; do not use it")
                opened.extractall(place)
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(place, filter="data")
    except tarfile.FilterError as error:
        raise DatasetError(
            f"{archive} has the path {error.tarinfo.name}, which leads out of it or is no file; do not use it"
        ) from error
    except (*DAMAGED, RuntimeError) as error:  # RuntimeError: a zip with a password
        raise DatasetError(f"{archive} cannot be unpacked as a tar or zip archive ({error}); get it again") from error
