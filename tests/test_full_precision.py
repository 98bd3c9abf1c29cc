"""Full float32 for a block, whatever flags of torch the caller has set, and those flags afterwards."""

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from torch import backends
from dml.api.full_precision import full_precision
from dml.models.embedder import best_device

def state():
    places = (backends, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    found = [place.fp32_precision.replace("none", "ieee") for place in places]  # none is ieee
    found += [backends.cudnn.deterministic, backends.cudnn.benchmark]
    found += [torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()]
    for read in (lambda: backends.cuda.matmul.allow_tf32, lambda: backends.cudnn.allow_tf32):
        try:
            found.append(read())
        except RuntimeError:
            found.append("raises")
    return found

{change}
before = state()
with full_precision():
    inside = backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision
    assert not set(inside) & {{"tf32", "bf16"}}, inside
    assert backends.cudnn.deterministic and not backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_float32_matmul_precision() == "highest"
    best_device()
assert state() == before, (before, state())
try:
    with full_precision():
        raise KeyError
except KeyError:
    assert state() == before
"""


@pytest.mark.parametrize(
    "change",
    [
        "",
        "torch.set_float32_matmul_precision('high')",
        "backends.cuda.matmul.allow_tf32 = True",
        "backends.cudnn.deterministic = True; backends.cudnn.allow_tf32 = False",
        "backends.cuda.matmul.fp32_precision = 'tf32'",
        "backends.fp32_precision = 'tf32'",
        "backends.cudnn.benchmark = True",
        "torch.use_deterministic_algorithms(True)",
        "torch.use_deterministic_algorithms(True, warn_only=True)",
    ],
)
def test_precision_is_full_inside_and_as_it_was_outside(change: str) -> None:
    """In a new process: the flags are global."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(change=change)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
