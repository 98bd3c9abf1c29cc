"""Intervals and tests against their definitions."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dml.evaluation.statistics import (
    clopper_pearson,
    over_seeds,
    paired_test,
    pool_seeds,
    ratio_interval,
    standard_error,
    wilson,
)


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_interval(successes: int, trials: int) -> None:
    successes = min(successes, trials)
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert low < high
    for edge in (low, high):  # each end is where the observed share is 1.96 standard errors away
        if 0 < edge < 1:
            error = (edge * (1 - edge) / trials) ** 0.5
            assert abs(successes / trials - edge) == pytest.approx(1.959964 * error, rel=1e-6, abs=1e-12)


@given(st.integers(0, 200), st.integers(1, 200), st.floats(0.001, 0.2))
def test_clopper_pearson_is_the_exact_bound(successes: int, trials: int, alpha: float) -> None:
    """At the lower end, so many successes or more have probability alpha."""
    successes = min(successes, trials)
    low = clopper_pearson(successes, trials, alpha)
    if not successes:
        assert low == 0
        return
    terms = (math.comb(trials, k) * low**k * (1 - low) ** (trials - k) for k in range(successes, trials + 1))
    assert sum(terms) == pytest.approx(alpha, rel=1e-4)


@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 300), st.integers(1, 300))
def test_the_ends_of_a_ratio_recover_the_variance_of_each_share(first: int, of: int, second: int, trials: int) -> None:
    """Donner and Zou's condition: the difference is as far from 0 as the errors on that side, added as squares."""
    first, second = min(first, of), min(second, trials)
    share, part = first / of, second / trials
    (low, high), (least, most) = wilson(first, of), wilson(second, trials)
    lower, upper = ratio_interval(first, of, second, trials)
    assert 0 <= lower <= upper
    error = (share - low) ** 2 + (lower * (most - part)) ** 2
    assert (share - lower * part) ** 2 == pytest.approx(error, rel=1e-6, abs=1e-12)
    assert lower >= low / most * (1 - 1e-9), "narrower than the quotient of the ends"
    if second:
        assert lower <= share / part * (1 + 1e-9)
        assert upper >= share / part * (1 - 1e-9)
        error = (high - share) ** 2 + (upper * (part - least)) ** 2
        assert (share - upper * part) ** 2 == pytest.approx(error, rel=1e-6, abs=1e-12)
    else:
        assert upper == math.inf


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_paired_test_is_the_exact_binomial_one(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    only_first, only_second, chance = paired_test(first, second)
    assert (only_first, only_second) == (pairs.count((True, False)), pairs.count((False, True)))
    apart = only_first + only_second
    tail = sum(math.comb(apart, k) for k in range(min(only_first, only_second) + 1)) / 2**apart
    assert chance == pytest.approx(min(1.0, 2 * tail))
    assert paired_test(second, first)[2] == pytest.approx(chance)


def test_paired_test_needs_the_same_queries() -> None:
    with pytest.raises(ValueError, match="the same queries; there are 2 and 1"):
        paired_test([True, False], [True])


def test_interval_over_seeds() -> None:
    """Student's t with two degrees of freedom: 4.3027 standard errors on each side."""
    mean, low, high = over_seeds([0.4, 0.5, 0.6])
    assert mean == pytest.approx(0.5)
    assert (mean - low, high - mean) == pytest.approx((4.302653 * 0.1 / 3**0.5,) * 2, rel=1e-6)
    with pytest.raises(ValueError, match="two or more trainings; there is 1"):
        over_seeds([0.4])


def test_standard_error_is_never_zero() -> None:
    assert standard_error(0, 100) > 0
    assert standard_error(50, 100) == pytest.approx(0.049, abs=1e-3)


def test_seeds_are_pooled_by_counting_queries() -> None:
    keys = {
        "dataset": "d",
        "loss": "l",
        "defense": "robust",
        "suite": "quick",
        "attack": "worst",
        "norm": "linf",
        "eps": 0.1,
    }
    table = pd.DataFrame(
        [
            {**keys, "seed": 0, "queries": 100, "r1": 0.3, "map_r": 0.2, "gates": "hold"},
            {**keys, "seed": 1, "queries": 300, "r1": 0.5, "map_r": 0.6, "gates": "fail"},
        ]
    )
    (row,) = pool_seeds(table).itertuples()
    assert (row.trainings, row.queries, row.r1, row.gates) == (2, 400, 0.45, "fail")
    assert row.map_r == pytest.approx(0.5)
    (row,) = pool_seeds(table.assign(gates=["hold", "not run"])).itertuples()
    assert row.gates == "not run", "gates of one training say nothing of another"
    assert (row.r1_low, row.r1_high) == wilson(180, 400)
