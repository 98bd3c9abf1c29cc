"""Two models compared query by query: tests, intervals, pooled seeds."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_records import record
from scipy.stats import binomtest, multinomial

from dml.data.sampling import attacked_rows
from dml.reporting import paired

KEY = "0.031373"
FIRST, SECOND = ("triplet", "robust"), ("triplet", "standard")


def made(model: tuple[str, str], marks: str, map_r: list[float] | None = None, **changes: Any) -> dict[str, Any]:
    """A record of a few queries, one character each."""
    more = {} if map_r is None else {"map_r": {KEY: " ".join(f"{value:.4f}" for value in map_r)}}
    plain = record(*model, 0.9, marks.count("1"), queries=len(marks), survival={KEY: marks})
    return plain | more | changes


def r1(*runs: dict[str, Any]) -> paired.Difference | None:
    return paired.in_r1(paired.same_queries(runs, FIRST, SECOND, KEY), KEY)


def map_r(*runs: dict[str, Any]) -> paired.Difference | None:
    return paired.in_map_r(paired.same_queries(runs, FIRST, SECOND, KEY), KEY)


def test_r1_by_hand() -> None:
    """Five queries only the first gets right, one only the second, four both or neither."""
    found = r1(made(FIRST, "1111101100"), made(SECOND, "0000011100"))
    assert found[:4] == (10, 5, 1, pytest.approx(0.4))
    assert found.chance == pytest.approx(2 * (1 + 6) / 2**6)
    # One more query for either model: 6 and 2 of 12, so a mean of 4/12 and a variance of 8/12 - (4/12)^2.
    half = 1.959964 * math.sqrt((8 / 12 - 1 / 9) / 12)
    assert (found.low, found.high) == pytest.approx((1 / 3 - half, 1 / 3 + half))


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 5))
def test_mcnemar_is_exact_and_symmetric(ahead: int, behind: int, same: int) -> None:
    differences = np.array([1] * ahead + [-1] * behind + [0] * (same + 1))
    found, turned = paired.of_shares(differences), paired.of_shares(-differences)
    apart = ahead + behind
    if apart:
        assert found.chance == pytest.approx(binomtest(ahead, apart).pvalue)
    # Every way in which the queries that tell the models apart could have fallen.
    splits = [math.comb(apart, count) for count in range(apart + 1) if abs(2 * count - apart) >= abs(ahead - behind)]
    assert found.chance == pytest.approx(sum(splits) / 2**apart)
    assert turned[:3] == (found.queries, behind, ahead)
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert turned.chance == pytest.approx(found.chance)
    assert -1 <= found.low < found.high <= 1


@pytest.mark.parametrize(
    ("queries", "ahead", "behind"), [(30, 0.3, 0.1), (30, 0.1, 0.1), (40, 0.15, 0.02), (25, 0.5, 0.2)]
)
def test_the_interval_of_r1_covers_the_difference_in_95_of_100_samples(
    queries: int, ahead: float, behind: float
) -> None:
    """Exactly: over all outcomes of so many queries, weighted by their probability."""
    covered = 0.0
    for first, second in itertools.product(range(queries + 1), repeat=2):
        if first + second <= queries:
            found = paired.of_shares(np.repeat([1, -1, 0], [first, second, queries - first - second]))
            if found.low <= ahead - behind <= found.high:
                share = [ahead, behind, 1 - ahead - behind]
                covered += multinomial.pmf([first, second, queries - first - second], queries, share)
    assert 0.94 <= covered <= 0.985


def test_map_r_by_hand() -> None:
    """Differences 0.3, 0.1, 0.2, 0: mean 0.15, standard deviation 0.1291, t 2.3238 with three degrees of freedom."""
    found = map_r(made(FIRST, "1111", [0.5, 0.4, 0.9, 0.0]), made(SECOND, "0000", [0.2, 0.3, 0.7, 0.0]))
    assert found[:4] == (4, 3, 0, pytest.approx(0.15))
    half = 3.182446 * math.sqrt(0.05 / 3) / 2
    assert (found.low, found.high) == pytest.approx((0.15 - half, 0.15 + half))
    assert found.chance == pytest.approx(0.1027, abs=1e-4)
    assert found.verdict == "not separated"


def test_the_interval_of_map_r_covers_the_difference_in_95_of_100_samples() -> None:
    generator = np.random.default_rng(0)
    easy = generator.beta(0.6, 0.8, (1500, 50))  # of a query, for both models
    differences = np.clip(easy + generator.normal(0.05, 0.1, easy.shape), 0, 1) - easy
    truth = differences.mean()
    found = [paired.of_means(some) for some in differences]
    assert 0.93 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.97


def test_models_that_are_alike_are_not_separated() -> None:
    alike = [made(FIRST, "1100", [0.5] * 4), made(SECOND, "1100", [0.5] * 4)]
    found = r1(*alike)
    assert (found.ahead, found.behind, found.value, found.chance, found.verdict) == (0, 0, 0.0, 1.0, "not separated")
    assert found.low < 0 < found.high, "four queries say little"
    assert map_r(*alike)[1:] == (0, 0, 0.0, 0.0, 0.0, 1.0, False)


def test_a_query_of_several_seeds_counts_once_with_its_mean() -> None:
    """Both seeds attack the same four queries, in different orders."""
    natural = {"queries": 4, "r1": 0.9, "map_r": 0.5}
    orders = [attacked_rows(4, 4, seed) for seed in (0, 1)]
    assert not np.array_equal(*orders)
    survive = {FIRST: ("1110", "1100"), SECOND: ("0000", "0101")}  # of queries 0 to 3, with either seed
    lowered = {FIRST: ([0.4, 0.6, 0.5, 0.3], [0.2, 0.4, 0.5, 0.3]), SECOND: ([0.1] * 4, [0.3] * 4)}
    runs = [
        made(
            model,
            "".join(survive[model][seed][query] for query in order),
            [lowered[model][seed][query] for query in order],
            seed=seed,
            natural=natural,
        )
        for model in (FIRST, SECOND)
        for seed, order in enumerate(orders)
    ]
    # Differences of queries 0 to 3: 1, 1, 1, 0 with seed 0; 1, 0, 0, -1 with seed 1; on average 1, 0.5, 0.5, -0.5.
    found = r1(*runs)
    assert found[:4] == (4, 3, 1, pytest.approx(0.375))
    assert found.chance == pytest.approx(2 * (1 + 4) / 2**4), "of three signs against one"
    variance = (1 + 3 * 0.25 + 2) / 6 - (1.5 / 6) ** 2
    assert found.high - found.low == pytest.approx(2 * 1.959964 * math.sqrt(variance / 6))
    # 0.3, 0.5, 0.4, 0.2 with seed 0; -0.1, 0.1, 0.2, 0 with seed 1; on average 0.1, 0.3, 0.3, 0.1.
    assert map_r(*runs)[:4] == (4, 4, 0, pytest.approx(0.2))


def test_no_model_is_ahead_where_the_count_and_the_mean_of_queries_disagree() -> None:
    """Thirty queries are a little better with the first model, twelve are lost with every seed of it."""
    found = paired.of_shares(np.array([1 / 3] * 30 + [-1.0] * 12 + [0.0] * 200))
    assert (found.ahead, found.behind) == (30, 12)
    assert found.chance < paired.CHANCE
    assert found.value < 0
    assert found.verdict == "not separated"


def test_a_test_of_the_mean_decides_whatever_most_queries_say() -> None:
    """Two hundred queries gain little, a hundred lose much: Student's test is on the mean, which is lower."""
    found = paired.of_means(np.array([0.01] * 200 + [-0.2] * 100))
    assert found.ahead > found.behind
    assert found.high < 0
    assert found.verdict == "fails"


def test_only_seeds_of_both_models_with_the_same_queries_are_compared() -> None:
    runs = [made(FIRST, "11", seed=0), made(FIRST, "11", seed=1), made(SECOND, "00", seed=1)]
    assert r1(*runs).queries == 2
    assert r1(runs[0], runs[2]) is None
    assert r1(made(FIRST, "11"), made(SECOND, "000")) is None
    with pytest.raises(ValueError, match="evaluation digests a, b are mixed"):
        r1(*(made(FIRST, "11", digests={"training": "", "evaluation": name}) for name in "ab"))


def test_map_r_is_compared_only_where_every_record_has_it() -> None:
    both = made(FIRST, "11", [0.1, 0.2]), made(SECOND, "00", [0.1, 0.1])
    assert map_r(*both).queries == 2
    assert map_r(both[0], made(SECOND, "00")) is None
    assert map_r(*both, made(FIRST, "11", seed=1), made(SECOND, "00", seed=1)) is None
    assert map_r(made(FIRST, "1", [0.1]), made(SECOND, "0", [0.1])) is None, "one query has no spread"
    assert map_r() is None


def test_holm_by_hand() -> None:
    """Times 4, 3, 2, 1 from the smallest up, never below an earlier one, at most 1."""
    assert paired.holm([0.03, 0.01, 0.02, 0.6]) == pytest.approx([0.06, 0.04, 0.06, 0.6])
    assert paired.holm([0.7, 0.6]) == [1.0, 1.0]
    assert paired.holm([]) == []
