"""Any loss of pytorch-metric-learning (Musgrave et al. 2020), with one value per query."""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dml.common.checks import known
from dml.common.importing import put_off
from dml.losses.base import BatchLoss, pairs

with put_off("scipy.stats"):  # a second of every start of the command line, for one function that no loss calls
    from pytorch_metric_learning import losses
    from pytorch_metric_learning.reducers import DoNothingReducer

FAR = 1e4
"""Distance of a query to its own image in the reference, and minus its similarity: beyond every other item."""


class PML(BatchLoss):
    """A loss of pytorch-metric-learning, on all pairs or triplets of queries with references.

    A query's value is the mean over its positive pairs, plus the mean over its negative pairs, or the mean over its
    triplets, or the value that the loss gives that query. Pairs that cost nothing count in these means; the library's
    reducers, which leave them out, are not used. A query without pairs costs 0.

    What a loss computes over the whole batch (HistogramLoss, PNPLoss, the terms of ProxyAnchorLoss, regularisers) each
    query gets in full, so that the mean over queries is the library's value. Such a loss couples the queries: the
    value of one changes with the others.

    Losses that refuse a reference set see the queries alone. Those that compare embeddings with proxies or class
    weights need none. For the others (FastAPLoss, HistogramLoss, InstanceLoss, NPairsLoss, PNPLoss, RankedListLoss,
    SmoothAPLoss, ThresholdConsistentMarginLoss) the queries are their own reference, perturbed queries included.

    Args:
        classes, dimension: see :class:`dml.losses.base.Loss`; a loss with the arguments ``num_classes`` and
            ``embedding_size`` gets them.
        name: a class of ``pytorch_metric_learning.losses``, for example ``MultiSimilarityLoss``.
        settings: further arguments of that class, numbers and words only. ``triplets_per_anchor`` has no effect.

    Raises:
        ValueError: the loss is unknown, refuses the settings, or takes no labels.
    """

    def __init__(self, classes: int, dimension: int, *, name: str, **settings: Any) -> None:
        super().__init__(classes, dimension)
        known("pytorch-metric-learning's loss", name, CHOICES)
        if "reducer" in settings:
            raise ValueError(f"{name} has the setting 'reducer'; leave it out, every query needs a value")
        accepted = _arguments(kind := CHOICES[name])
        sizes = {"num_classes": classes, "embedding_size": dimension, "descriptors_dim": dimension}
        given = {word: value for word, value in sizes.items() if word in accepted} | settings
        try:
            self.loss = kind(**given, reducer=DoNothingReducer())
            self.compares = _compares(copy.deepcopy(self.loss), dimension)
        except (TypeError, ValueError, KeyError, AttributeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"pytorch-metric-learning's {name} cannot be used with {settings}: {error!r}") from error

    def forward(
        self, queries: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor, own: Tensor
    ) -> Tensor:
        """Return one loss per query (B,); see :meth:`dml.losses.base.BatchLoss.forward`."""
        before = self._plain_tensors()
        with torch.autocast(queries.device.type, enabled=False):  # similarities differ by less than bfloat16 resolves
            if self.compares:
                terms = self._compared(queries, labels, reference, reference_labels, own)
            else:
                terms = self.loss(queries, labels)
        values = 0 * queries.sum(1)
        for term in terms.values():
            values = values + _per_query(term, values)
        kept = self._plain_tensors() if self.training else before
        for name, value in kept.items():
            setattr(self.loss, name, value.detach())
        return values

    def _compared(
        self, queries: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor, own: Tensor
    ) -> dict[str, dict[str, Any]]:
        """Call a loss that takes a reference set, each query's own image left out of its pairs."""
        positive, negative = pairs(labels, reference_labels, own)
        itself = own[:, None] == torch.arange(len(reference), device=own.device)

        def hide(distance: torch.nn.Module, inputs: tuple, found: Tensor) -> Tensor:
            # NCALoss looks at every item, whatever pairs it is given.
            far = -FAR if distance.is_inverted else FAR
            return found.masked_fill(itself, far) if found.shape == itself.shape else found

        hook = self.loss.distance.register_forward_hook(hide)
        try:
            given = (*torch.where(positive), *torch.where(negative))
            return self.loss(queries, labels, given, ref_emb=reference, ref_labels=reference_labels)
        finally:
            hook.remove()

    def _plain_tensors(self) -> dict[str, Tensor]:
        """State that a loss keeps outside its parameters and buffers, such as DynamicSoftMarginLoss's histogram."""
        return {name: value for name, value in vars(self.loss).items() if isinstance(value, Tensor)}

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return what ``state_dict`` holds beside parameters and buffers."""
        return self._plain_tensors()

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        for name, value in state.items():
            setattr(self.loss, name, value)


def _choices() -> dict[str, type]:
    """Return the library's losses by name; wrappers around other losses are none."""
    base = losses.BaseMetricLossFunction
    classes = {name: value for name, value in vars(losses).items() if inspect.isclass(value)}
    return {name: value for name, value in classes.items() if issubclass(value, base) and value is not base}


CHOICES = _choices()


def _arguments(kind: type) -> set[str]:
    """Return the names of a class's constructor arguments, those that it passes on to its bases included."""
    own = [base.__init__ for base in kind.__mro__ if "__init__" in vars(base)]
    return {name for init in own for name in inspect.signature(init).parameters}


def _compares(loss: torch.nn.Module, dimension: int) -> bool:
    """Try a loss on a few embeddings: does it compare queries with a reference set?

    Raises:
        ValueError: it does neither that nor accept labelled embeddings alone; other errors as the loss raises them.
    """
    draw = torch.Generator().manual_seed(0)
    queries, reference = (normalize(torch.randn(count, dimension, generator=draw), dim=1) for count in (4, 6))
    labels, reference_labels = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    masks = pairs(labels, reference_labels, torch.full_like(labels, -1))
    given = tuple(index for mask in masks for index in torch.where(mask))
    reference.requires_grad_(True)
    try:
        terms = loss(queries, labels, given, ref_emb=reference, ref_labels=reference_labels)
        total = sum(torch.as_tensor(term["losses"]).sum() for term in terms.values())
        if torch.autograd.grad(total, reference, allow_unused=True)[0] is not None:
            return True
    except (ValueError, IndexError, RuntimeError):
        pass  # it refuses or ignores the reference
    loss(queries, labels)
    return False


def _per_query(term: dict[str, Any], like: Tensor) -> Tensor:
    """Return one part of a loss as one value per query (B,), or as one number that every query gets."""
    found = torch.as_tensor(term["losses"]).to(like).flatten()
    kind, indices = term["reduction_type"], term["indices"]
    if kind == "already_reduced":
        return found.mean()
    if kind == "element" and "divisor" in term:  # one value per proxy or class, not per query
        return found.sum() / max(float(term["divisor"]), 1.0)
    rows = indices if kind == "element" else indices[0]
    if not len(rows):  # no pairs, where the library gives one zero
        return torch.zeros_like(like)
    number = torch.bincount(rows, minlength=len(like)).clamp_min(1)
    return torch.zeros_like(like).index_add(0, rows, found) / number
