"""Archives made to do harm are refused in one sentence, and nothing is written outside the folder asked for."""

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dml.data.base import DatasetError
from dml.data.unpack import unpack


def entry(name: str, **changes: object) -> tarfile.TarInfo:
    """A header of a tar."""
    made = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(made, key, value)
    return made


@contextmanager
def pack(archive: Path, folder: Path) -> Iterator[Any]:
    """Write a good dataset into a tar or zip, which is open for what is not good."""
    is_zip = archive.suffix == ".zip"
    with zipfile.ZipFile(archive, "w") if is_zip else tarfile.open(archive, "w:gz") as opened:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                (opened.write if is_zip else opened.add)(file, f"set/{file.relative_to(folder)}")
        yield opened


@pytest.fixture
def dataset(picture_folder: Callable[..., Path]) -> Path:
    """Four images of two classes, with their table."""
    folder = picture_folder(classes=2, images=2)
    rows = [f"class_{c:02d}/{i}.png,{c}" for c in range(2) for i in range(2)]
    (folder / "labels.csv").write_text("path,label\n" + "\n".join(rows))
    return folder


def refused(archive: Path, words: str) -> None:
    """Unpacking ends with one sentence and leaves nothing."""
    before = {file for file in archive.parent.rglob("*") if file.name != "data"}
    with pytest.raises(DatasetError, match=words) as caught:
        unpack(archive, archive.parent / "data" / "set")
    assert "\n" not in str(caught.value)
    assert {file for file in archive.parent.rglob("*") if file.name != "data"} == before


@pytest.mark.parametrize(
    "bad",
    [
        entry("set/../../../outside.png"),
        entry("set/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        entry("set/link", type=tarfile.SYMTYPE, linkname="../../outside"),
        entry("set/hard", type=tarfile.LNKTYPE, linkname="../outside"),
        entry("set/hard", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        entry("set/device", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        entry("set/block", type=tarfile.BLKTYPE, devmajor=7),
        entry("set/pipe", type=tarfile.FIFOTYPE),
    ],
    ids=lambda bad: f"{bad.type.decode()} {bad.name} {bad.linkname}",
)
def test_a_tar_that_leads_out_is_refused(bad: tarfile.TarInfo, dataset: Path, tmp_path: Path) -> None:
    with pack(tmp_path / "set.tar.gz", dataset) as opened:
        opened.addfile(bad)
    refused(tmp_path / "set.tar.gz", f"has the path {bad.name}, which leads out of it")


def test_a_tar_cannot_write_through_its_own_link(dataset: Path, tmp_path: Path) -> None:
    with pack(tmp_path / "set.tar.gz", dataset) as opened:
        opened.addfile(entry("set/up", type=tarfile.SYMTYPE, linkname=".."))
        opened.addfile(entry("set/up/up", type=tarfile.SYMTYPE, linkname="../.."))
        opened.addfile(entry("set/up/up/outside.png", size=4), io.BytesIO(b"evil"))
    refused(tmp_path / "set.tar.gz", "which leads out of it")


@pytest.mark.parametrize("name", ["/outside.png", "set/../../outside.png"])
def test_a_zip_that_leads_out_is_refused(name: str, dataset: Path, tmp_path: Path) -> None:
    with pack(tmp_path / "set.zip", dataset) as opened:
        opened.writestr(name, b"evil")
    refused(tmp_path / "set.zip", f"has the path {name}, which leads out of it; do not use it")


def test_a_link_in_a_zip_is_a_file_like_any_other(dataset: Path, tmp_path: Path) -> None:
    """The zip reader makes no links, so that the image, whose text is a path, is no image of that path."""
    link = zipfile.ZipInfo("set/class_00/2.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pack(tmp_path / "set.zip", dataset) as opened:
        opened.writestr(link, "/etc/passwd")
    unpack(tmp_path / "set.zip", tmp_path / "data" / "set")
    assert not (tmp_path / "data" / "set" / "class_00" / "2.png").is_symlink()


def test_an_absolute_path_in_a_tar_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pack(tmp_path / "set.tar.gz", dataset) as opened:
        opened.addfile(entry(f"{tmp_path}/outside.png"))
    refused(tmp_path / "set.tar.gz", r"outside\.png, which leads out of it")


def test_a_bomb_of_one_large_file_is_refused_before_it_is_unpacked(dataset: Path, tmp_path: Path) -> None:
    """A terabyte is declared; a reader that begins with it would fill the disk, or fail at the end of the archive."""
    with pack(tmp_path / "set.tar.gz", dataset) as opened:
        opened.fileobj.write(entry("set/large", size=2**40).tobuf(format=tarfile.PAX_FORMAT))
    refused(tmp_path / "set.tar.gz", r"set\.tar\.gz unpacks to more than [\d,]+ MB, .* do not use it")


def test_a_bomb_of_many_files_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pack(tmp_path / "set.tar.gz", dataset) as opened:
        header = entry("set/class_00/empty.png").tobuf(format=tarfile.USTAR_FORMAT)
        opened.fileobj.write(header * 60_000)
    refused(tmp_path / "set.tar.gz", r"set\.tar\.gz unpacks to more than [\d,]+ MB, .* do not use it")


def test_a_zip_bomb_is_refused(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dml.data.unpack.ANY_ARCHIVE", 2**20)
    with pack(tmp_path / "set.zip", dataset) as opened:
        opened.writestr("set/class_00/zeros.png", bytes(20 * 2**20), zipfile.ZIP_DEFLATED)
    refused(tmp_path / "set.zip", r"set\.zip unpacks to more than [\d,]+ MB, .* do not use it")


def test_a_set_that_does_not_fit_on_the_disk_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pack(tmp_path / "set.zip", dataset):
        pass
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    refused(tmp_path / "set.zip", r"set\.zip needs more than the .* free .*; make room")
