"""Row numbers of images: class-balanced batches, evenly spaced samples, attacked queries."""

from collections.abc import Iterator

import numpy as np

from dml.common.randomness import numpy_generator
from dml.data.base import DatasetError


def balanced_batches(
    labels: np.ndarray, *, classes: int, images_per_class: int, batches: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Row numbers (B,) of ``batches`` batches: ``classes`` classes times ``images_per_class`` different images.

    Classes come in random rounds, so that each is seen equally often. No image occurs twice in a batch.

    Raises:
        DatasetError: the labels cannot fill such a batch.
    """
    values, counts = np.unique(labels, return_counts=True)
    if len(values) < classes:
        raise DatasetError(f"a batch of {classes} classes cannot be filled from {len(values)} training classes")
    if counts.min() < images_per_class:
        raise DatasetError(
            f"a batch of {images_per_class} images per class cannot be filled: "
            f"training class {values[counts.argmin()]} has {counts.min()}"
        )
    rows = {value: np.flatnonzero(labels == value) for value in values}
    waiting = np.empty(0, dtype=values.dtype)
    for _ in range(batches):
        if len(waiting) < classes:
            # The rest of the last round comes first, and last in the new round, so that no batch holds it twice.
            fresh = generator.permutation(values)
            left_over = np.isin(fresh, waiting)
            waiting = np.concatenate([waiting, fresh[~left_over], fresh[left_over]])
        chosen, waiting = waiting[:classes], waiting[classes:]
        yield np.concatenate([generator.choice(rows[value], images_per_class, replace=False) for value in chosen])


def attacked_rows(count: int, total: int, seed: int) -> np.ndarray:
    """Row numbers (count,) of the queries to attack: the first of one random order of all ``total`` queries.

    The order depends on the seed and ``total`` alone. So all models of a seed meet the same queries, and two suites of
    different size share those of the smaller one, in the same order.

    Raises:
        ValueError: there are fewer queries.
    """
    if count > total:
        raise ValueError(f"{count} queries are to be attacked; the test classes have {total}")
    return numpy_generator(seed, "attacked queries").permutation(total)[:count]


def evenly(most: int, total: int) -> np.ndarray:
    """Row numbers (N,), evenly spaced from first to last of ``total``: at most ``most``, all if there are fewer."""
    return np.linspace(0, total - 1, min(most, total)).astype(int)
