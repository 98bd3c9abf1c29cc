"""What is kept of an unfinished evaluation comes back as it was, to the last bit, or is measured again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_faults_files import flipped, half

from dml.common.files import read_columns, write_columns, write_json
from dml.evaluation.engine import in_chunks
from dml.evaluation.gates import Gate, _kept

TABLE = pd.DataFrame({"query": np.arange(4), "attack": ["worst"] * 4, "eps": 0.1, "r1": [1.0, 0, 1, 0]})
DAMAGES: dict[str, Callable[[Path], None]] = {
    "half": half,
    "empty": lambda file: file.write_bytes(b""),
    "one bit": flipped(150),
    "no table": lambda file: write_json(file, [1, 2]),
}


def test_one_changed_bit_never_gives_another_table(tmp_path: Path) -> None:
    """In any byte of the file. The zip's own directory has no checksum: a bit of it may hide whole columns."""
    file, refused = tmp_path / "table.npz", 0
    write_columns(file, TABLE)
    whole = file.read_bytes()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        file.write_bytes(content)
        try:
            pd.testing.assert_frame_equal(read_columns(file), TABLE)
        except ValueError as error:
            refused += f"{file} is damaged (" in str(error)
    assert refused > len(whole) / 2


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_is_evaluated_again(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done: list[list[int]] = []
    lines: list[str] = []

    def work(chunk: np.ndarray) -> pd.DataFrame:
        done.append(chunk.tolist())
        return TABLE.iloc[chunk].reset_index(drop=True)

    def run() -> pd.DataFrame:
        return in_chunks(np.arange(4), work, size=2, folder=tmp_path, report=lines.append)

    whole, told = run(), list(lines)
    lines.clear()
    DAMAGES[damage](tmp_path / "0000002.npz")
    pd.testing.assert_frame_equal(run(), whole)
    assert done == [[0, 1], [2, 3], [2, 3]]
    assert lines == told
    assert "0000002.npz is damaged (" in capsys.readouterr().err
    pd.testing.assert_frame_equal(run(), whole)
    assert len(done) == 3


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_gate_is_measured_again(damage: str, tmp_path: Path) -> None:
    """JSON would give another number for one changed bit of a digit."""
    gate, measured = Gate("random noise", 0.03, 1 / 3, 0.05, False), []

    def measure() -> Gate:
        measured.append(1)
        return gate

    def check(times: int) -> None:
        (found,) = _kept(tmp_path, lambda line: None, "noise", 0.03, measure)
        assert found == gate
        assert [type(value) for value in found] == [str, float, float, float, bool]
        assert len(measured) == times

    check(1)
    check(1)
    (file,) = tmp_path.iterdir()
    DAMAGES[damage](file)
    check(2)
    check(2)
