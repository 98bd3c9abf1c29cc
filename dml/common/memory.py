"""Memory that a process has freed and will soon want again."""

import ctypes
import os

LARGEST = 32 * 2**20  # bytes; glibc takes no larger threshold
KEPT = 2**31 - 1  # bytes, the largest number that mallopt takes
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed() -> None:
    """Let this process, and those that it starts, keep freed memory instead of handing it back to the system.

    A training step or a step of an attack allocates and frees the same large arrays again and again. By default
    glibc asks the system for them each time, which clears every page. results/benchmarks.md tells what that costs:
    some percent of a small network's training, nothing of a large one's. Elsewhere than in glibc this does nothing,
    and where one of the variables is set.
    """
    wanted = {"MALLOC_MMAP_THRESHOLD_": str(LARGEST), "MALLOC_TRIM_THRESHOLD_": str(KEPT)}
    if wanted.keys() & os.environ.keys():
        return
    os.environ.update(wanted)  # which glibc reads when a process starts
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGEST)
        mallopt(TRIM_THRESHOLD, KEPT)
