"""The file that keeps the state of an unfinished training."""

import errno
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dml.common.files import atomic


class CheckpointError(ValueError):
    """A state that cannot be read; the sentence names its file."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of one training, in a file that whoever runs the training discards once its weights are safe.

    Attributes:
        file: that the state is kept in.
        key: a digest of all settings and code that decide the training. State saved under another key is not loaded.
    """

    file: Path
    key: str

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, tensors on the CPU; None if there is none, or it belongs to another training.

        Raises:
            CheckpointError: the file is not, to the last bit, what was saved.
        """
        if not self.file.exists():
            return None
        try:
            with zipfile.ZipFile(self.file) as archive:  # torch.load does not compare the checksums that it has written
                changed = archive.testzip()
            if changed:
                raise ValueError(f"{changed} has another checksum")
            saved = torch.load(self.file, map_location="cpu", weights_only=True)  # so that loading runs no code
            return saved["state"] if saved["key"] == self.key else None
        except Exception as error:  # a damaged zip raises a dozen kinds
            told = " ".join(str(error).split())[:100] or type(error).__name__
            raise CheckpointError(
                f"{self.file} is damaged ({told}); remove it, and the training starts over"
            ) from error

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state: tensors, numbers and strings in dictionaries and lists.

        Raises:
            OSError: the file cannot be written, as on a full disk; the old one stays.
        """
        with atomic(self.file) as partial:
            try:
                torch.save({"key": self.key, "state": state}, partial)
            except RuntimeError as error:  # torch tells positions in the file, and neither its name nor the cause
                free = shutil.disk_usage(self.file.parent).free
                told = f"the state cannot be written, with {free / 1e6:,.0f} MB free on its disk"
                raise OSError(errno.EIO, told, os.fspath(self.file)) from error

    def discard(self) -> None:
        """Delete the saved state, if there is any."""
        self.file.unlink(missing_ok=True)
