"""Whatever a labels.csv holds, it is read as images of the folder, each once, or one sentence says what is wrong."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dml.data.base import DatasetError
from dml.data.sources.folder import read_folder

HEAD = ["path", "label", "class_name", "group", "query", "train"]
ROWS = [
    [f"c{c}/{i}.png", str(c), f"name {c}", f"g{i}", str(int(i == 0)), str(int(c == 1))]
    for c in range(3)
    for i in range(2)
]
CELLS = [
    *(
        "",
        "0",
        "-1",
        "1.0",
        "1.5",
        "nan",
        "inf",
        "True",
        "x",
        "é",
        "1e3",
        "0x1",
        " 1",
        "9" * 30,
        str(2**63),
        str(2**64),
    ),
    *("\0", "a\0b", '"', '"a,b"', '""', "\n", "\r", "\ufeff", "=1+1", "a" * 300, "x/" * 3000),
    *("../outside.png", "/etc/passwd", "c0", ".", "./c0/0.png", "c1/../c0/0.png", "c0//0.png", "c9/0.png", "c0\\0.png"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Six images of three classes, no two alike, and one beside the folder."""
    place = tmp_path_factory.mktemp("raw") / "set"
    for row, (path, *_) in enumerate(ROWS):
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), row, np.uint8)).save(place / path)
    Image.new("RGB", (4, 4)).save(place.parent / "outside.png")
    return place


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A good table with some cells, names, lines and bytes changed, added or removed."""
    columns = [0, 1, *sorted(draw(st.sets(st.integers(2, 5))))]
    lines = [[row[column] for column in columns] for row in [HEAD, *ROWS]]
    for _ in range(draw(st.integers(0, 2))):
        line = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["cell", "cell", "cell", "drop", "twice", "longer", "shorter"]))
        if kind == "cell" and lines[line]:
            words = CELLS if line else [*HEAD, "", "x", "\ufeffpath"]
            lines[line][draw(st.integers(0, len(lines[line]) - 1))] = draw(st.sampled_from(words))
        elif kind == "drop" and len(lines) > 1:
            del lines[line]
        elif kind == "twice":
            lines.insert(line, list(lines[line]))
        elif kind == "longer":
            lines[line].append(draw(st.sampled_from(CELLS)))
        elif kind == "shorter":
            lines[line] = lines[line][:-1]
    text = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"])).join(",".join(line) for line in lines).encode()
    if draw(st.integers(0, 2)) == 0:
        place = draw(st.integers(0, len(text)))
        extra = draw(st.sampled_from([b'"', b",", b"\n", b"\0", b"\xff", b";", b"0", b""]))
        text = text[:place] + extra + text[place + draw(st.integers(0, 1)) :]
    return text


@settings(
    max_examples=500,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(tables())
def test_mutated_tables_are_read_or_are_one_sentence(folder: Path, table: bytes) -> None:
    (folder / "labels.csv").write_bytes(table)
    try:
        source = read_folder(folder)
    except DatasetError as error:
        told = str(error)
        assert told.isprintable()
        assert len(told) < 400
        assert "labels.csv" in told
    else:
        pixels = [np.asarray(make(4)).tobytes() for _, make in source.tasks(np.arange(len(source.labels)))]
        assert len(set(pixels)) == len(pixels), "no image twice"
        assert (np.diff(source.labels) >= 0).all()
        assert len(source.class_names) == len(set(source.labels))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("c0/1.png,0,1", "is not a table of comma-separated values: Error tokenizing data"),
        ("a\0b,0", r"lists 'a\\x00b'..., which is no path of a file"),
        (f"{'a' * 300},0", "which is no path of a file"),
        ("./c0/0.png,1", r"lists './c0/0.png' twice"),
        ("c1/../c0/0.png,1", r"lists 'c1/../c0/0.png' twice"),
    ],
)
def test_what_a_table_may_not_list(line: str, words: str, folder: Path) -> None:
    (folder / "labels.csv").write_text(f"path,label\nc0/0.png,0\n{line}\n")
    with pytest.raises(DatasetError, match=words) as caught:
        read_folder(folder)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("16 bits.png", np.full((4, 4), 1000, np.uint16)),
        ("fractions.tif", np.full((4, 4), 0.5, np.float32)),
        ("nan.tif", np.full((4, 4), np.nan, np.float32)),
        ("32 bits.tif", np.full((4, 4), 1000, np.int32)),
    ],
)
def test_pixels_that_are_not_8_bit_are_refused(name: str, pixels: np.ndarray, tmp_path: Path) -> None:
    """Pillow turns the first of these white and the next ones black, without a word."""
    (tmp_path / "class").mkdir()
    Image.fromarray(pixels).save(tmp_path / "class" / name)
    with pytest.raises(DatasetError, match=rf"{name} has pixels of mode [IF].*; convert it to 8 bits per channel"):
        read_folder(tmp_path).read(0)
