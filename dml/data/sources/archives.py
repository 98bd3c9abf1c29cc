"""Reads official archives (a folder, a zip or a tar) as names and bytes, without extracting them."""

import hashlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dml.data.base import DatasetError

# What Python's readers raise for bytes that are cut short, changed, or packed in an unknown way.
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError)
ENDINGS = (".tgz", ".tar.gz", ".tar", ".zip")


@dataclass(frozen=True)
class Tree:
    """The files of an archive or a folder, by name.

    Attributes:
        place: the archive, or the extracted folder.
        root: name of the top folder; file names are relative to it.
    """

    place: Path
    root: str

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            DatasetError: there is no such file.
        """
        for _, content in self.stream([name]):
            return content
        raise DatasetError(f"{self.place} lacks {self.root}/{name}; it is incomplete, get it again")

    def stream(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Name and content of the files that exist, in the order in which they are quickest to read.

        A compressed tar can only be read from front to back; memory holds one file at a time.

        Raises:
            DatasetError: the archive is damaged, or has a path that leads out of it.
        """
        if self.place.is_dir():
            for name in names:
                file = self.place / name
                if file.is_file():
                    yield name, file.read_bytes()
            return
        wanted = set(names)
        try:
            if self.place.suffix == ".zip":
                with zipfile.ZipFile(self.place) as archive:
                    for member in archive.infolist():
                        name = self._inside(member.filename)
                        if name in wanted:
                            yield name, archive.read(member)
                return
            with tarfile.open(self.place, "r|*") as archive:
                for member in archive:
                    name = self._inside(member.name)
                    content = archive.extractfile(member) if name in wanted and member.isfile() else None
                    if content is not None:
                        wanted.discard(name)
                        yield name, content.read()
                        if not wanted:
                            return
        except DAMAGED as error:
            raise DatasetError(f"{self.place} is damaged or cut short ({error}); get it again") from error

    def digest(self) -> str:
        """SHA-256 of the archive, or of the names and sizes of all files of the folder."""
        total = hashlib.sha256()
        if self.place.is_dir():
            for file in sorted(self.place.rglob("*")):
                if file.is_file():
                    total.update(f"{file.relative_to(self.place).as_posix()} {file.stat().st_size}\n".encode())
        else:
            with self.place.open("rb") as stream:
                while block := stream.read(2**20):
                    total.update(block)
        return total.hexdigest()

    def _inside(self, path: str) -> str:
        """The path relative to the root folder; empty for files elsewhere in the archive."""
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts:
            raise DatasetError(f"{self.place} has the path {path}, which leads out of the archive; do not use it")
        parts = tuple(part for part in parts if part != ".")
        return "/".join(parts[1:]) if parts[:1] == (self.root,) else ""


def find(folder: Path, root: str, archive: str) -> Tree | None:
    """The extracted folder ``root`` or the archive ``archive`` (any usual ending) in ``folder``, if there is one."""
    for place in (folder / root, *(folder / f"{archive}{ending}" for ending in ENDINGS)):
        if place.exists():
            return Tree(place, root)
    return None
