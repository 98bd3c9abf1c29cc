"""Proxy-anchor loss."""

from dml.common.checks import at_least
from dml.losses.pml import PML


class ProxyAnchor(PML):
    """Proxy-anchor loss (Kim et al. 2020): each class has a proxy, which is compared with the whole batch.

    It is the sum of two means over proxies. The first is over proxies p whose class is in the batch, of log(1 + sum
    exp(-alpha (s(x, p) - margin))) over the queries x of that class. The second is over all proxies, of log(1 + sum
    exp(alpha (s(x, p) + margin))) over the queries of other classes. s is the cosine similarity.

    Each query gets this value in full, so that the mean over queries is the loss. The value of a query therefore
    changes with the other queries, and perturbed queries are perturbed jointly. The reference set is not used.

    The proxies (classes, dimension) are parameters of the loss, drawn at random. The optimiser trains them with the
    model, at the same learning rate unless ``loss_learning_rate`` says otherwise; the authors' is a hundred times it.

    Args:
        classes, dimension: see :class:`dml.losses.base.Loss`.
        margin: a query's similarity to the proxy of its class should exceed this, and to others fall below -margin.
        alpha: weight of hard queries relative to easy ones.

    Raises:
        ValueError: the margin is negative, or alpha is not above 0.
    """

    def __init__(self, classes: int, dimension: int, *, margin: float = 0.1, alpha: float = 32.0) -> None:
        at_least("margin", margin, 0)
        if not alpha > 0:
            raise ValueError(f"alpha is {alpha}; it must be above 0")
        super().__init__(classes, dimension, name="ProxyAnchorLoss", margin=margin, alpha=alpha)
