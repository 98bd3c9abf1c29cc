"""`python -m dml evaluate` is stopped by Ctrl-C while it runs, and the same command goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dml.__main__ import main
from dml.api import attack
from dml.common.files import ROOT

MODEL_FILE = """
import time

import torch
from torch import nn


class Slow(nn.Linear):
    def forward(self, images):
        time.sleep(0.002)
        return super().forward(images.flatten(1))


def make():
    torch.manual_seed(0)
    return Slow(768, 8).eval()
"""


def test_ctrl_c_keeps_the_finished_chunk(
    picture_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MODEL_FILE)
    output = tmp_path / "out"
    words = ["evaluate", str(picture_folder(images=15)), "--model", f"{tmp_path}/mine.py:make", "--size", "16"]
    words += ["--eps", "8/255", "--queries", "110", "--no-controls", "--output", str(output)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, "-m", "dml", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a job in the background ignores
    )
    try:
        lines = iter(started.stdout.readline, "")
        assert any("attacked 100/110" in line for line in lines), started.communicate()[1]
        started.send_signal(signal.SIGINT)
        told, error = started.communicate(timeout=120)
    finally:
        started.kill()
    assert started.returncode == 130
    assert error == "\nstopped; the same command continues\n"
    assert "attacked 110/110" not in told
    assert not (output / "report.html").exists()
    sizes: list[int] = []
    chunk = attack._chunk

    def counted(*given: object) -> attack.Attacked:
        sizes.extend(len(value) for value in given if isinstance(value, np.ndarray))
        return chunk(*given)

    monkeypatch.setattr(attack, "_chunk", counted)
    assert main(words) == 0
    assert sizes == [10], "the finished hundred are not attacked again"
    assert (output / "report.html").exists()
    assert not (output / ".unfinished").exists()
