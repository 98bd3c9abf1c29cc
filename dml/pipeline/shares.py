"""What each of several programs, side by side, gets of this machine: some of its cores, and one of its GPUs."""

import argparse
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpus() -> list[str]:
    """Return the GPUs that this process may use, as the variable ``CUDA_VISIBLE_DEVICES`` names them."""
    from torch.cuda import device_count  # takes seconds to import

    named = os.environ.get(VISIBLE)
    names = [name.strip() for name in named.split(",")] if named else map(str, range(device_count()))
    return list(names)[: device_count()]


def cores() -> int:
    """Return how many cores this process may use: a job of a cluster often gets a part of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most(devices: int | Literal["auto"], found: Sequence[str]) -> int:
    """Return how many programs to run side by side.

    Args:
        devices: ``run.devices`` of params.yaml. Other than 1, each program shares its work among GPUs by itself.
        found: names of the GPUs of this machine.

    Returns:
        One per GPU, or one where each takes several of them; without a GPU one per core.
    """
    if found:
        return len(found) if devices == 1 else 1
    return cores()


class Shares:
    """Lends shares of the machine to programs.

    Args:
        jobs: programs side by side; each may use as many threads as leave the others as many cores.
        found: names of the GPUs to lend, one to a program, the one with the fewest programs first. None are lent if
            there is one program at a time, which may use all, or if each takes several.
    """

    def __init__(self, jobs: int, found: Sequence[str] = ()) -> None:
        self.threads = max(1, cores() // jobs)
        self._programs = dict.fromkeys(found if jobs > 1 else (), 0)
        self._lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[dict[str, str]]:
        """Lend a share inside the block: the environment of a program that stays within it."""
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        if not self._programs:
            yield environment
            return
        with self._lock:
            gpu = min(self._programs, key=self._programs.__getitem__)
            self._programs[gpu] += 1
        try:
            yield environment | {VISIBLE: gpu}
        finally:
            with self._lock:
                self._programs[gpu] -= 1


def positive(text: str) -> int:
    """The type of a command-line argument: a number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}; it must be at least 1")
    return number


def shares_of(jobs: int | None, devices: int | Literal["auto"]) -> tuple[int, Shares]:
    """Return how many programs run side by side, and what they share.

    Args:
        jobs: as many as the user wants; None for :func:`most`.
        devices: ``run.devices`` of params.yaml.
    """
    found = gpus()
    jobs = jobs or most(devices, found)
    return jobs, Shares(jobs, found if devices == 1 else ())
