"""Work in an order that its parts allow, several at a time."""

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

Graph = Mapping[str, set[str]]
"""Part -> parts that it needs first; acyclic."""


def in_order(parts: Graph, work: Callable[[str], int], jobs: int) -> tuple[list[str], list[str]]:
    """Run every part after those that it needs, ``jobs`` at a time; of those that can start the first one starts.

    After a failure all goes on that does not need what failed.

    Args:
        parts: in the order in which they should start.
        work: part -> exit status.
        jobs: parts side by side.

    Returns:
        The parts that failed, and those left out because they need one of these.
    """
    waiting = dict(parts)
    done: set[str] = set()
    failed: list[str] = []
    left_out: list[str] = []
    running: dict[Future[int], str] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while True:
            for part in [part for part, needs in waiting.items() if needs <= done][: jobs - len(running)]:
                del waiting[part]
                running[pool.submit(work, part)] = part
            if not running:
                return failed, left_out
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                part = running.pop(future)
                if not future.result():
                    done.add(part)
                    continue
                failed.append(part)
                for other in dependents(parts, part) & waiting.keys():
                    del waiting[other]
                    left_out.append(other)


def dependents(parts: Graph, part: str) -> set[str]:
    """Return the parts that need one, directly or through others."""
    found: set[str] = set()
    waiting = [part]
    while waiting:
        needed = waiting.pop()
        fresh = {name for name, needs in parts.items() if needed in needs} - found
        found |= fresh
        waiting += fresh
    return found


def most_needed_first(parts: Graph) -> Graph:
    """Return the parts in the order of how many need them, directly or through others; else as they were."""
    return dict(sorted(parts.items(), key=lambda item: -len(dependents(parts, item[0]))))
