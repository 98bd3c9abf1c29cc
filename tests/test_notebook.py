"""Stripping and running notebooks."""

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from dml.common.files import ROOT, atomic, remove
from dml.pipeline import notebook


def write(file: Path, *sources: str, parameters: str = "word = 'here'") -> Path:
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"], "scrolled": True})]
    cells += [nbformat.v4.new_code_cell(source, execution_count=3) for source in sources]
    cells[-1].outputs = [nbformat.v4.new_output("stream", text="old")]
    book = nbformat.v4.new_notebook(cells=cells, metadata={"signature": "x", "kernelspec": notebook.KERNEL})
    nbformat.write(book, file)
    return file


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Where a run's notebook goes; what a failure leaves in the project is removed."""
    file = tmp_path / "out.ipynb"
    yield file
    remove(notebook.failed(file))


def test_committed_notebooks_hold_no_outputs() -> None:
    files = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert [file.name[:2] for file in files] == ["01", "02", "03", "04", "05", "06", "07"]
    for file in files:
        book = nbformat.read(file, as_version=4)
        assert all(not cell.get("outputs") for cell in book.cells), file
        assert any("parameters" in cell.metadata.get("tags", []) for cell in book.cells), file


def test_committed_notebooks_are_easy_to_read() -> None:
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(file, as_version=4).cells:
            lines = cell.source.splitlines()
            assert cell.cell_type != "code" or len(lines) <= 25, (file.name, cell.id)
            assert [line for line in lines if len(line) > 120] == [], (file.name, cell.id)


def test_stripping_forgets_what_running_left(tmp_path: Path) -> None:
    write(tmp_path / "a.ipynb", "print(word)")
    notebook.strip_folder(tmp_path, tmp_path / "out")
    first = (tmp_path / "out" / "a.ipynb").read_bytes()
    book = nbformat.read(tmp_path / "out" / "a.ipynb", as_version=4)
    assert book.cells[-1].outputs == []
    assert book.cells[-1].execution_count is None
    assert book.cells[0].metadata == {"tags": ["parameters"]}
    notebook.strip_folder(tmp_path / "out", tmp_path / "out")
    assert (tmp_path / "out" / "a.ipynb").read_bytes() == first


@pytest.mark.parametrize(("text", "sentence"), [(None, "holds no notebook"), ("{}", "a.ipynb is no notebook")])
def test_what_cannot_be_stripped_is_one_sentence(
    text: str | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "a.ipynb").write_text(text)
    assert notebook.main(["strip", str(tmp_path), str(tmp_path / "out")]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_json_that_is_no_notebook_does_not_run(tmp_path: Path, target: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.ipynb").write_text('{"a": 1}')
    assert notebook.main(["run", str(tmp_path / "a.ipynb"), str(target)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("ValidationError: Notebook")
    assert "Traceback" not in told


def test_running_passes_output_through(tmp_path: Path, target: Path, capfd: pytest.CaptureFixture) -> None:
    source = write(tmp_path / "a.ipynb", "import os, sys\nprint(word, os.getcwd())\nprint('aside', file=sys.stderr)")
    arguments = ["run", str(source), str(target), "-p", "word", "there"]
    assert notebook.main(arguments) == 0
    printed = capfd.readouterr()
    assert printed.out.strip() == f"there {ROOT}"
    assert printed.err.strip() == "aside", "nothing but what the notebook says"
    first = target.read_bytes()
    assert notebook.main(arguments) == 0
    assert target.read_bytes() == first, "the same run gives the same bytes"
    assert not notebook.failed(target).exists()


def test_a_failure_is_two_lines(tmp_path: Path, target: Path, capfd: pytest.CaptureFixture) -> None:
    source = write(tmp_path / "a.ipynb", "raise ValueError('the folder is empty')")
    assert notebook.main(["run", str(source), str(target)]) == 1
    lines = capfd.readouterr().err.strip().splitlines()
    assert lines == [
        "ValueError: the folder is empty",
        f"the notebook up to the failed cell: {notebook.failed(target).relative_to(ROOT)}",
    ]
    assert notebook.failed(target).exists()
    assert not target.exists()


def test_an_unknown_parameter_is_named(tmp_path: Path, target: Path, capfd: pytest.CaptureFixture) -> None:
    source = write(tmp_path / "a.ipynb", "print(word)")
    assert notebook.main(["run", str(source), str(target), "-p", "wort", "x"]) == 1
    assert "a.ipynb has no parameter 'wort'; it has word" in capfd.readouterr().err
    assert not target.exists()


def test_a_notebook_that_is_not_there(tmp_path: Path, target: Path, capfd: pytest.CaptureFixture) -> None:
    assert notebook.main(["run", str(tmp_path / "none.ipynb"), str(target)]) == 1
    assert "none.ipynb" in capfd.readouterr().err


def test_atomic_keeps_the_old_when_the_new_fails(tmp_path: Path) -> None:
    for name in ("file", "folder"):
        place = tmp_path / name
        with atomic(place) as partial:
            partial.write_text("old") if name == "file" else partial.mkdir()
        with pytest.raises(RuntimeError, match="half-way"), atomic(place) as partial:  # noqa: PT012
            partial.write_text("new") if name == "file" else partial.mkdir()
            raise RuntimeError("half-way")
        assert place.exists()
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(place.name for place in tmp_path.iterdir()) == ["file", "folder"]


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    """Killed between its first file and the renaming: the next writer of the same path starts clean."""
    left = tmp_path / ".out.partial"
    left.mkdir()
    (left / "half").write_text("written")
    with atomic(tmp_path / "out") as partial:
        assert not partial.exists()
        partial.mkdir()
        (partial / "whole").write_text("written")
    assert [file.name for file in tmp_path.rglob("*")] == ["out", "whole"]


def test_notebooks_of_the_same_name_fail_in_places_of_their_own() -> None:
    folders = ("artifacts/02", "artifacts/03", "scratch", "/tmp")
    places = {notebook.failed(Path(folder) / "a.ipynb") for folder in folders}
    assert len(places) == 4
    assert all(place.is_relative_to(ROOT / "artifacts" / "failed") for place in places)


def test_progress_is_shown_and_not_kept(tmp_path: Path, target: Path, capfd: pytest.CaptureFixture) -> None:
    source = write(tmp_path / "a.ipynb", "import sys\nprint('done')\nprint('3 s left', file=sys.stderr)")
    assert notebook.main(["run", str(source), str(target)]) == 0
    assert "3 s left" in capfd.readouterr().err
    text = target.read_text()
    assert "done" in text
    assert "3 s left" not in text.replace("print('3 s left'", "")


def test_stdout_is_one_piece_however_it_came() -> None:
    """A kernel sends what it prints in pieces that depend on the clock, and progress on stderr splits it further."""

    def saved(*pieces: tuple[str, str]) -> list:
        cell = nbformat.v4.new_code_cell("print()")
        cell.outputs = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in pieces]
        cell.outputs.append(nbformat.v4.new_output("display_data", {"text/plain": "figure"}))
        return notebook._plain(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs

    whole = saved(("stdout", "one\ntwo\n"))
    assert saved(("stdout", "one\n"), ("stderr", "3 s left"), ("stdout", "two\n")) == whole
    assert saved(("stdout", "one\n"), ("stdout", "two\n")) == whole
    assert [output.output_type for output in whole] == ["stream", "display_data"]
