"""Multi-similarity loss."""

from dml.losses.pml import PML


class MultiSimilarity(PML):
    """log(1 + sum_p exp(-alpha (s_p - base))) / alpha + log(1 + sum_n exp(beta (s_n - base))) / beta of each query.

    s_p and s_n are its cosine similarities to the positives and negatives (Wang et al. 2019). No pair miner is used:
    all pairs of a query enter its sums. The paper leaves out easy pairs first.

    Args:
        classes, dimension: see :class:`dml.losses.base.Loss`.
        alpha: weight of hard positives relative to easy ones; the paper's is 2.
        beta: weight of hard negatives relative to easy ones; the paper's is 50.
        base: similarity that positives should exceed and negatives should not (lambda in the paper, which has 1). The
            default is that of the authors' code and of pytorch-metric-learning.

    Raises:
        ValueError: alpha or beta is not above 0.
    """

    def __init__(
        self, classes: int, dimension: int, *, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5
    ) -> None:
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        super().__init__(classes, dimension, name="MultiSimilarityLoss", alpha=alpha, beta=beta, base=base)
