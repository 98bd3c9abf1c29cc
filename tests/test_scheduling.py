"""Work side by side: order and failures."""

import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from dml.pipeline.scheduling import dependents, in_order, most_needed_first

DIAMOND = {"figures": {"a", "b"}, "a": {"data"}, "b": {"data"}, "data": set(), "alone": set()}


def test_all_that_needs_a_part() -> None:
    assert dependents(DIAMOND, "data") == {"a", "b", "figures"}
    assert dependents(DIAMOND, "a") == {"figures"}
    assert dependents(DIAMOND, "figures") == set()


def test_the_first_that_can_start_does() -> None:
    order: list[str] = []
    assert in_order(DIAMOND, lambda part: order.append(part) or 0, jobs=1) == ([], [])
    assert order == ["data", "a", "b", "figures", "alone"]
    order.clear()
    turned = dict(reversed(DIAMOND.items()))
    assert in_order(turned, lambda part: order.append(part) or 0, jobs=1) == ([], [])
    assert order == ["alone", "data", "b", "a", "figures"]


def test_what_most_need_comes_first() -> None:
    assert list(most_needed_first(DIAMOND)) == ["data", "a", "b", "figures", "alone"]


def test_as_many_as_allowed_run_at_once() -> None:
    together = threading.Barrier(2, timeout=10)  # breaks, and the parts fail, unless both meet here

    def work(part: str) -> int:
        if part in ("a", "b"):
            together.wait()
        return 0

    assert in_order(DIAMOND, work, jobs=2) == ([], [])


def test_a_place_does_not_wait_for_a_long_part() -> None:
    """While one part of the first two takes long, what needs the other, and what needs nothing, are done."""
    others = threading.Event()
    parts = {"long": set(), "short": set(), "after short": {"short"}, "last": set()}

    def work(part: str) -> int:
        if part == "long":
            assert others.wait(10)
        elif part == "last":
            others.set()
        return 0

    assert in_order(parts, work, jobs=2) == ([], [])


def test_all_goes_on_that_does_not_need_what_failed() -> None:
    order: list[str] = []

    def work(part: str) -> int:
        order.append(part)
        return int(part == "a")

    assert in_order(DIAMOND, work, jobs=1) == (["a"], ["figures"])
    assert order == ["data", "a", "b", "alone"]


@st.composite
def _graphs(draw: st.DrawFn) -> dict[str, set[str]]:
    names = [str(number) for number in range(draw(st.integers(1, 8)))]
    return {name: draw(st.sets(st.sampled_from(names[:place]))) if place else set() for place, name in enumerate(names)}


@settings(max_examples=40, deadline=None)
@given(_graphs(), st.integers(1, 4), st.sets(st.integers(0, 7)))
def test_every_part_runs_once_after_those_it_needs(parts: dict[str, set[str]], jobs: int, failing: set[int]) -> None:
    started, finished, running, most = [], set(), [0], [0]
    lock = threading.Lock()

    def work(part: str) -> int:
        with lock:
            assert parts[part] <= finished
            started.append(part)
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.001)
        with lock:
            running[0] -= 1
            if int(part) in failing:
                return 1
            finished.add(part)
        return 0

    failed, left_out = in_order(parts, work, jobs)
    assert sorted(started + left_out) == sorted(parts)
    assert set(failed) == {part for part in started if int(part) in failing}
    assert set(left_out) == set().union(*(dependents(parts, part) for part in failed))
    assert most[0] <= jobs
