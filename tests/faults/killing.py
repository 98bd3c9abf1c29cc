"""Kills a piece of work at random moments and compares what it leaves with work that nobody disturbed."""

import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

Work = Callable[[Path], dict[str, bytes]]
"""A folder, in which it keeps what is finished and finds what an earlier, killed process kept -> what it made."""


def compare(work: Work, kills: int, seed: int) -> int:
    """Kill work with SIGKILL a number of times, let it go on each time, and print one line per kill.

    Work that ends before its kill is compared and begins anew in an empty folder.

    Args:
        work: to do, in a new process that shares what this one has imported.
        kills: how many.
        seed: of the moments.

    Returns:
        The exit status: 1 if any piece of work that ended made other bytes than undisturbed work.
    """
    draw, told = random.Random(seed), {"kills": 0, "ended": 0, "different": 0}
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        whole = _run(work, Path(place, "whole"), None)
        seconds, rounds = time.perf_counter() - began, 0
        while True:
            folder, last = Path(place, f"round {rounds}"), told["kills"] == kills
            wait = None if last else draw.uniform(0, 0.5 * seconds)
            made = _run(work, folder, wait)
            if made is None:
                told["kills"] += 1
                kept = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
                print(f"kill {told['kills']}, after {wait:.2f} s: {len(kept)} files, {sum(kept):,} bytes", flush=True)
                continue
            rounds += 1
            told["ended"] += 1
            told["different"] += made != whole
            if last:
                print(json.dumps(told))
                return int(told["different"] > 0)


def _run(work: Work, folder: Path, wait: float | None) -> dict[str, bytes] | None:
    """What the work made; None if it was killed after ``wait`` seconds."""
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, folder, sender))
    process.start()
    sender.close()  # so that the end of the process ends the pipe
    try:
        if receiver.poll(wait):
            made = receiver.recv()
            process.join()
            return made
    except EOFError as error:
        raise RuntimeError("the work ended without a result; its lines above say why") from error
    process.kill()
    process.join()
    return None


def _work(work: Work, folder: Path, sender: Connection) -> None:
    sender.send(work(folder))
