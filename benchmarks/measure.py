"""What the benchmarks share: calls timed in turns, memory of a process, and parts run in a new process."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from dml.common.files import ROOT


def in_turns(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each call. A slow minute of the machine hits all alike; two more rounds warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 2):
        for name, call in work.items():
            start = time.perf_counter()
            call()
            if number >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def held() -> float:
    """Return the megabytes that this process holds now."""
    return _memory("VmRSS")


def peak() -> float:
    """Return the most megabytes that this process ever held; unlike getrusage, without those of its parent."""
    return _memory("VmHWM")


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(value) / 1024


def apart(module: str, *words: str) -> str:
    """Run a benchmark's module with these words in a new process, and return what it prints."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *words]
    return subprocess.run(command, check=True, cwd=ROOT, text=True, stdout=subprocess.PIPE).stdout


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of an argument such as 5924:100."""
    return tuple(map(int, text.split(":")))


def model_and_numbers(text: str) -> tuple[str, *tuple[int, ...]]:
    """Return the name and the numbers of an argument such as conv4:32."""
    name, *rest = text.split(":")
    return name, *map(int, rest)
