"""How certain a measured share is: intervals over queries and over seeds, and a paired test of two models."""

import math
from collections.abc import Sequence

import pandas as pd
from scipy.special import bdtr, betaincinv, stdtrit


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's score interval for a proportion, 95% by default. It lies in [0, 1] and is never empty."""
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # The ends are exact where all or none succeed; rounding must not move them off 0 and 1.
    low = (centre - half) / scale if successes else 0.0
    high = (centre + half) / scale if successes < trials else 1.0
    return low, high


def standard_error(successes: int, trials: int) -> float:
    """Return the standard error of a proportion, with two successes and two failures added (Agresti and Coull).

    It is never 0.
    """
    share = (successes + 2) / (trials + 4)
    return math.sqrt(share * (1 - share) / (trials + 4))


def clopper_pearson(successes: int, trials: int, alpha: float) -> float:
    """Return the lower end of the exact one-sided interval: the true share is above it with probability 1 - alpha."""
    return float(betaincinv(successes, trials - successes + 1, alpha)) if successes else 0.0


def ratio_interval(first: int, of_first: int, second: int, of_second: int) -> tuple[float, float]:
    """Return the 95% interval for the ratio of two proportions, from Wilson's interval of each.

    After Donner and Zou (2012), MOVER-R.

    Args:
        first, of_first: successes and trials of the numerator.
        second, of_second: those of the denominator.

    Returns:
        Both ends; the upper is infinite where the denominator had no success.
    """
    (low, high), (least, most) = wilson(first, of_first), wilson(second, of_second)
    share, part = first / of_first, second / of_second
    # Each end is where the difference of the numerator and so many denominators is as far from 0 as its error: both
    # solve a quadratic equation, the lower by the form that holds where nothing of the denominator was seen.
    both, down, up = share * part, low * (2 * share - low), high * (2 * share - high)
    root = math.sqrt(max(0.0, both**2 - down * most * (2 * part - most)))
    lower = down / (both + root) if first else 0.0
    if not second:
        return lower, math.inf
    scale = least * (2 * part - least)
    return lower, (both + math.sqrt(max(0.0, both**2 - up * scale))) / scale


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and the 95% t-interval over independent trainings.

    Raises:
        ValueError: fewer than two values.
    """
    count = len(values)
    if count < 2:
        raise ValueError(f"an interval over seeds needs two or more trainings; there is {count}")
    mean = sum(values) / count
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, 0.975)) * spread / math.sqrt(count)
    return mean, mean - half, mean + half


def paired_test(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """Return McNemar's exact test of two models on the same queries.

    Args:
        first, second: for each query, whether it survives under that model.

    Returns:
        How many queries survive under the first alone, how many under the second alone, and the two-sided probability
        of a split at least as uneven if both were equally good.

    Raises:
        ValueError: not the same number of queries.
    """
    if len(first) != len(second):
        raise ValueError(f"a paired test needs the same queries; there are {len(first)} and {len(second)}")
    only_first = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    apart = only_first + only_second
    chance = min(1.0, 2 * float(bdtr(min(only_first, only_second), apart, 0.5))) if apart else 1.0
    return only_first, only_second, chance


def pool_seeds(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return rows of metrics.csv with the queries of all seeds counted together and a new interval.

    Gates fail if one does, and hold if all do.
    """
    rows = []
    keys = ["dataset", "loss", "defense", "suite", "attack", "norm", "eps"]
    for key, group in metrics.groupby(keys):
        successes, trials = round((group["r1"] * group["queries"]).sum()), int(group["queries"].sum())
        map_r = (group["map_r"] * group["queries"]).sum() / trials
        gates = next(word for word in ("fail", "not run", "hold") if group["gates"].eq(word).any())
        rows.append((*key, len(group), trials, successes / trials, *wilson(successes, trials), map_r, gates))
    return pd.DataFrame(rows, columns=[*keys, "trainings", "queries", "r1", "r1_low", "r1_high", "map_r", "gates"])
