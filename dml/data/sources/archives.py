"""Official archives read where they lie: a folder, a zip or a tar, each as names and bytes. Nothing is extracted."""

import hashlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dml.data.base import DatasetError

# What Python's readers raise at bytes that are wrong, at their end, in the middle or in how they are packed.
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError)
ENDINGS = (".tgz", ".tar.gz", ".tar", ".zip")


@dataclass(frozen=True)
class Tree:
    """Files by name, out of an archive or a folder.

    Attributes:
        place: the archive, or the extracted folder.
        root: name of that folder; names are given below it.
    """

    place: Path
    root: str

    def read(self, name: str) -> bytes:
        """One small file.

        Raises:
            DatasetError: there is no such file.
        """
        for _, content in self.stream([name]):
            return content
        raise DatasetError(f"{self.place} lacks {self.root}/{name}; it is not whole, get it again")

    def stream(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Name and content of those of the files that are there, in the order in which they are quickest to read.

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
        """The path below the root folder; empty for what lies elsewhere in the archive."""
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts:
            raise DatasetError(f"{self.place} has the path {path}, which leads out of the archive; do not use it")
        parts = tuple(part for part in parts if part != ".")
        return "/".join(parts[1:]) if parts[:1] == (self.root,) else ""


def find(folder: Path, root: str, archive: str) -> Tree | None:
    """The extracted folder ``root`` or the archive ``archive`` (any usual ending) below ``folder``, if it is there."""
    for place in (folder / root, *(folder / f"{archive}{ending}" for ending in ENDINGS)):
        if place.exists():
            return Tree(place, root)
    return None
