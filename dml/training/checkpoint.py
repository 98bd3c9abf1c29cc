"""The file that keeps the state of an unfinished training."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dml.common.files import atomic


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
        """Return the saved state, tensors on the CPU; None if there is none, or it belongs to another training."""
        if not self.file.exists():
            return None
        saved = torch.load(self.file, map_location="cpu", weights_only=True)  # so that loading runs no code
        return saved["state"] if saved.get("key") == self.key else None

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state: tensors, numbers and strings in dictionaries and lists."""
        with atomic(self.file) as partial:
            torch.save({"key": self.key, "state": state}, partial)

    def discard(self) -> None:
        """Delete the saved state, if there is any."""
        self.file.unlink(missing_ok=True)
