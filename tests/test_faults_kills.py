"""A preparation, an attack and its gates, killed at random moments with SIGKILL, end as if they had never been."""

import json
import os
import subprocess
import sys

import pytest

from dml.common.files import ROOT


@pytest.mark.parametrize("script", ["kill_preparation.py", "kill_evaluation.py"])
def test_work_killed_at_random_moments_ends_the_same(script: str) -> None:
    """Four times; by hand the scripts do it twenty times."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, str(ROOT / "tests" / "faults" / script), "--kills", "4"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == 4
    assert found["ended"] > 0
    assert found["different"] == 0
