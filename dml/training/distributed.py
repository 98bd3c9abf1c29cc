"""Several processes train one model: each embeds its share of the rows, and all see the embeddings of the whole batch.

Every process makes the same batches, draws from generators in the same state, and works on the same embeddings: it
mines the same tuples, takes the same steps of the adversary and finds the same loss. Only the passes of images through
the network, forward and backward, are shared out. A defence, a loss or an attack therefore needs no line for this.

Without a process group of ``torch.distributed``, or in a group of one, every function here does nothing.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.overrides import TorchFunctionMode

from dml.common.processes import LEADER, size

TOLERANCE = 1e-4  # of the loss, relative: other tuples change it by more, another kind of device by less


@contextmanager
def sharing(model: nn.Module) -> Iterator[None]:
    """Share out the rows of every batch that the model embeds inside the block.

    ``model(images)`` still takes the whole batch (B, 3, H, W) and returns all embeddings (B, D), and the gradient with
    respect to the images is that of the whole batch. The gradients of the model's own parameters are those of this
    process's rows until :func:`sum_gradients` adds them up. BatchNorm in training mode normalises by the statistics of
    the whole batch. A batch need not divide by the number of processes; some may get no row.
    """
    if size() == 1:
        yield
        return
    embed = model.forward

    def forward(images: Tensor) -> Tensor:
        with _WholeBatchNorm():
            own = embed(_Share.apply(images))
        return _Gather.apply(own, len(images))

    model.forward = forward  # not a wrapper: names of parameters, hooks and modes stay as they are
    try:
        yield
    finally:
        del model.forward


def sum_gradients(model: nn.Module, loss: nn.Module) -> None:
    """Replace gradients by those of the whole batch, after the backward pass, the same bits in every process.

    Args:
        model: whose gradients are summed, as each process has those of its own rows.
        loss: whose gradients every process has in full. Their mean keeps its parameters from drifting apart.
    """
    if size() == 1:
        return
    whole = [parameter.grad.div_(size()) for parameter in loss.parameters() if parameter.grad is not None]
    whole += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    together = torch.cat([gradient.reshape(-1) for gradient in whole])
    dist.all_reduce(together)
    for gradient, summed in zip(whole, together.split([gradient.numel() for gradient in whole]), strict=True):
        gradient.copy_(summed.view(gradient.shape))


@torch.no_grad()
def align(*modules: nn.Module) -> None:
    """Give every process the leader's parameters and buffers."""
    if size() == 1:
        return
    for module in modules:
        for value in chain(module.parameters(), module.buffers()):
            sent = value.detach().contiguous()
            dist.broadcast(sent, LEADER)
            value.copy_(sent)


def check_same(value: float, device: torch.device) -> None:
    """Raise RuntimeError if the processes have found different values of what should be the same loss.

    Args:
        value: of this process.
        device: that the group communicates from.
    """
    if size() == 1:
        return
    extremes = torch.tensor([value, -value], dtype=torch.float64, device=device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    most, least = float(extremes[0]), -float(extremes[1])
    if not math.isclose(most, least, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise RuntimeError(
            f"the processes no longer train the same model: the loss is {least} in one and {most} in another; give all "
            "of them the same code, images and kind of device"
        )


def _rows(count: int, rank: int) -> slice:
    """Return the rows of a batch of ``count`` that a process embeds."""
    return slice(rank * count // size(), (rank + 1) * count // size())


def _gathered(own: Tensor, count: int) -> Tensor:
    """Return all ``count`` rows of a batch in their order, given those of this process."""
    padded = own.new_zeros(-(-count // size()), *own.shape[1:])  # of one length everywhere
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(parts, padded)
    taken = [_rows(count, rank) for rank in range(size())]
    return torch.cat([part[: rows.stop - rows.start] for part, rows in zip(parts, taken, strict=True)])


class _Share(torch.autograd.Function):
    """Images of the whole batch -> those of this process; gradients of all processes -> that of the whole batch."""

    @staticmethod
    def forward(ctx: FunctionCtx, images: Tensor) -> Tensor:
        ctx.count = len(images)
        return images[_rows(len(images), dist.get_rank())].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return _gathered(gradient, ctx.count)


class _Gather(torch.autograd.Function):
    """Embeddings of this process -> those of all; gradient of all, which every process has -> that of its own rows."""

    @staticmethod
    def forward(ctx: FunctionCtx, own: Tensor, count: int) -> Tensor:
        ctx.count = count
        return _gathered(own, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[_rows(ctx.count, dist.get_rank())], None


class _WholeBatchNorm(TorchFunctionMode):
    """Replaces ``batch_norm``, whichever module calls it: torch's SyncBatchNorm runs on GPUs alone."""

    def __torch_function__(
        self, function: Callable, types: Any, given: tuple = (), named: dict[str, Any] | None = None
    ) -> Any:
        return (_batch_norm if function is F.batch_norm else function)(*given, **(named or {}))


def _batch_norm(
    values: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise (B, C, ...) as ``torch.nn.functional.batch_norm`` does, by statistics of the rows of all processes."""
    if not training:
        return F.batch_norm(values, running_mean, running_var, weight, bias, False, momentum, eps)
    mean, variance, count = _statistics(_full(values.detach()))
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (count / (count - 1)), momentum)
    scale = torch.ones_like(mean) if weight is None else weight
    shift = torch.zeros_like(mean) if bias is None else bias
    return _Normalise.apply(values, scale, shift, mean, (variance + eps).rsqrt(), count)


@torch.no_grad()
def _statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (C,) and biased variance (C,) of the values (B, C, ...) of all processes, and their number ()."""
    axes, count = [0, *range(2, values.ndim)], values[:, 0].numel()
    own = values.new_zeros(2, values.shape[1])  # a process without rows has neither
    if count:
        own = torch.stack(torch.var_mean(values, axes, correction=0))
    sent = torch.cat([own.flatten(), own.new_full((1,), count)]).double()
    parts = [torch.empty_like(sent) for _ in range(size())]
    dist.all_gather(parts, sent)
    found = torch.stack(parts)
    (variances, means), counts = found[:, :-1].view(size(), 2, -1).unbind(1), found[:, -1:]
    mean = (counts * means).sum(0) / counts.sum()
    variance = (counts * (variances + (means - mean).square())).sum(0) / counts.sum()
    return mean.to(values.dtype), variance.to(values.dtype), counts.sum()


class _Normalise(torch.autograd.Function):
    """(values - mean) * inverse * scale + shift, whose gradient goes through mean and inverse to every process."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, values: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, inverse: Tensor, count: Tensor
    ) -> Tensor:
        ctx.save_for_backward(values, scale, mean, inverse)
        ctx.count = count
        normal = (_full(values) - _wide(mean, values)) * _wide(inverse, values)
        return (normal * _wide(scale, values) + _wide(shift, values)).to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, scale, mean, inverse = ctx.saved_tensors
        axes = [0, *range(2, values.ndim)]
        wide, normal = _full(gradient), (_full(values) - _wide(mean, values)) * _wide(inverse, values)
        own = torch.stack([wide.sum(axes), (wide * normal).sum(axes)])
        through = own.clone()  # what reaches each value through the mean and through the inverse
        dist.all_reduce(through)
        through /= ctx.count
        inner = wide - _wide(through[0], values) - normal * _wide(through[1], values)
        inner = inner * _wide(scale * inverse, values)
        return inner.to(values.dtype), own[1].to(scale.dtype), own[0].to(scale.dtype), None, None, None


def _full(values: Tensor) -> Tensor:
    """Return values in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _wide(channels: Tensor, values: Tensor) -> Tensor:
    """Return (C,) such that it broadcasts over values (B, C, ...)."""
    return channels.view(-1, *[1] * (values.ndim - 2))
