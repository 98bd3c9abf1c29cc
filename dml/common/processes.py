"""The processes that train or evaluate together: started here on one machine, or by torchrun on any number of them.

Without a process group of ``torch.distributed``, or in a group of one, a process leads and does all work itself.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import multiprocessing

LEADER = 0  # the rank that reports, and writes files
PATIENCE = timedelta(hours=1)  # that processes wait for one of them, for example while it prepares images
Item, Result = TypeVar("Item"), TypeVar("Result")
Say = Callable[[str], None]


def to_nobody(line: str) -> None:
    """Drop a line: another process prints it, or has printed it."""


_apart = ContextVar("apart", default=False)


def size() -> int:
    """Return the number of processes that work together, 1 without a process group or inside :func:`alone`."""
    joint = dist.is_available() and dist.is_initialized() and not _apart.get()
    return dist.get_world_size() if joint else 1


@contextmanager
def alone() -> Iterator[None]:
    """Do all work inside the block by oneself, also in a process group: one process of it may evaluate a model."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def leads() -> bool:
    """Whether this process reports and writes files: one of all that work together does."""
    return size() == 1 or dist.get_rank() == LEADER


def from_leader(make: Callable[[], Result]) -> Result:
    """Return what ``make`` returns in the leader, which alone calls it: anything that can be pickled, on the CPU."""
    if size() == 1:
        return make()
    values: list[Any] = [make() if leads() else None]
    dist.broadcast_object_list(values, LEADER)
    return values[0]


def shared_out(items: Sequence[Item], work: Callable[[Item], Result]) -> list[Result]:
    """Return ``work(item)`` for each item, in order; each is called in one process, and all have all results.

    Args:
        items: the same in every process, which take turns.
        work: returns what can be pickled, on the CPU.
    """
    if size() == 1:
        return [work(item) for item in items]
    own = [work(item) for item in items[dist.get_rank() :: size()]]
    parts: list[Any] = [None] * size()
    dist.all_gather_object(parts, own)
    return [parts[place % size()][place // size()] for place in range(len(items))]


def wanted(devices: int | Literal["auto"]) -> int:
    """Return how many processes this one should start: 1, for none but itself, where torchrun has started them.

    Args:
        devices: processes per machine, or ``auto`` for one per GPU, and one without a GPU.

    Raises:
        ValueError: there are fewer GPUs. Without a GPU processes share the cores.
    """
    there = torch.cuda.device_count()
    if under_torchrun() or dist.is_initialized():
        return 1
    if devices == "auto":
        return max(1, there)
    if 0 < there < devices:
        raise ValueError(f"run.devices is {devices}; it must be at most {there}, the GPUs of this machine")
    return devices


def under_torchrun() -> bool:
    """Whether torchrun, or another launcher that sets the same variables, has started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined() -> Iterator[None]:
    """Work together with the processes that torchrun has started, inside the block; else by oneself.

    Raises:
        ValueError: torchrun has started more processes on this machine than it has GPUs.
    """
    if not under_torchrun() or dist.is_initialized():
        yield
        return
    with _group("env://", int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])):
        yield


def launch(processes: int, work: Callable[..., None], *given: Any, report: Say, timing: Say) -> None:
    """Run a function in several new processes of this machine that work together, and wait for them.

    They are spawned, not forked: a notebook's process may hold a GPU or threads.

    Args:
        processes: how many.
        work: of a module, called with ``given`` and with functions ``report`` and ``timing``.
        given: that can be pickled.
        report, timing: receive in this process, line by line, what the processes report.

    Raises:
        Exception: of the same kind, where a process raised one.
        ProcessExitedException: a process was killed.
    """
    lines = multiprocessing.get_context("spawn").SimpleQueue()
    threads = max(1, torch.get_num_threads() // processes)
    errors: list[Exception] = []
    with tempfile.TemporaryDirectory() as place:
        store = (Path(place) / "store").as_uri()
        running = multiprocessing.spawn(_run, (processes, threads, store, lines, work, given), processes, join=False)
        try:
            while not running.join(timeout=0.1):
                _pass_on(lines, report, timing, errors.append)
        except multiprocessing.ProcessRaisedException as raised:
            _pass_on(lines, report, timing, errors.append)
            raise (errors[0] if errors else raised) from raised
        finally:
            for process in running.processes:  # where this one was interrupted
                process.terminate()
    _pass_on(lines, report, timing, errors.append)


def _pass_on(lines: SimpleQueue, *channels: Callable[[Any], None]) -> None:
    while not lines.empty():
        channel, value = lines.get()
        channels[channel](value)


def _run(
    rank: int, processes: int, threads: int, store: str, lines: SimpleQueue, work: Callable[..., None], given: tuple
) -> None:
    """What each process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        with _group(store, rank, processes, rank):
            work(*given, report=lambda line: lines.put((0, line)), timing=lambda line: lines.put((1, line)))
    except Exception as error:
        lines.put((2, error))
        raise


def _end_with_parent() -> None:
    """End this process when the one that started it ends, even by a kill: it may wait for others for an hour."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _group(meeting: str, rank: int, processes: int, device: int) -> Iterator[None]:
    """A process group for a block; ``device`` is the number of this process's GPU if there are any."""
    backend = "gloo"
    if there := torch.cuda.device_count():
        if device >= there:
            raise ValueError(f"process {device} of this machine has no GPU of its own: there are {there}")
        torch.cuda.set_device(device)
        backend = "nccl"
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=processes, timeout=PATIENCE)
    try:
        yield
        dist.barrier()  # what the leader wrote is there for all
    except BaseException:
        _leave(backend)
        raise
    dist.destroy_process_group()


def _leave(backend: str) -> None:
    """Leave a process group after an error; NCCL's end would wait for processes that wait for this one elsewhere."""
    if backend == "nccl":
        dist.distributed_c10d._abort_process_group()
    else:
        dist.destroy_process_group()
