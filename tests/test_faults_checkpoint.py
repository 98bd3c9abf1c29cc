"""A checkpoint is loaded as it was saved, to the last bit, or not at all."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_faults_files import Touch, full_disk, half

from dml.training.checkpoint import Checkpoint, CheckpointError

STATE = {"modules": {"weight": torch.arange(500.0)}, "done": 3, "best": {"weight": torch.ones(40)}}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A saved state."""
    made = Checkpoint(tmp_path / "state.pt", "key")
    made.save(STATE)
    return made


def same(found: dict) -> bool:
    """Whether a state is the one that was saved."""
    return found["done"] == 3 and all(torch.equal(found[n]["weight"], STATE[n]["weight"]) for n in ("modules", "best"))


@pytest.mark.parametrize(
    "damage",
    [
        half,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_text("text"),
        lambda file: torch.save([1], file),
    ],
    ids=["half", "empty", "text", "list"],
)
def test_a_damaged_checkpoint_is_one_sentence(damage: Callable[[Path], None], checkpoint: Checkpoint) -> None:
    damage(checkpoint.file)
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged \(.+\); remove it, and the training") as caught:
        checkpoint.load()
    assert "\n" not in str(caught.value)


def test_one_changed_bit_never_gives_another_state(checkpoint: Checkpoint) -> None:
    """torch.load alone returns other weights for nearly all of these."""
    whole, draw, refused = checkpoint.file.read_bytes(), random.Random(0), 0
    for _ in range(200):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        checkpoint.file.write_bytes(content)
        try:
            assert same(checkpoint.load())
        except CheckpointError:
            refused += 1
    assert refused > 100
    checkpoint.file.write_bytes(whole)
    assert same(checkpoint.load())


def test_a_checkpoint_that_would_run_code_is_refused(checkpoint: Checkpoint) -> None:
    torch.save({"key": "key", "state": Touch(checkpoint.file.with_name("touched"))}, checkpoint.file)
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load()
    assert not checkpoint.file.with_name("touched").exists()


def test_another_trainings_state_is_not_loaded(checkpoint: Checkpoint) -> None:
    assert Checkpoint(checkpoint.file, "other").load() is None


def test_a_full_disk_is_named_and_keeps_the_old_state(checkpoint: Checkpoint) -> None:
    with (
        full_disk(8_000),
        pytest.raises(OSError, match=r"cannot be written, with [\d,]+ MB free .*state\.pt") as caught,
    ):
        checkpoint.save({"weight": torch.ones(50_000)})
    assert "\n" not in str(caught.value)
    assert same(checkpoint.load())
    assert [file.name for file in checkpoint.file.parent.iterdir()] == ["state.pt"]
