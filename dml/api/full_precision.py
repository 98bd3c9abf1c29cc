"""Full float32 on a GPU while a model is attacked, and the caller's settings afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import backends


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute in float32 without TF32, and convolve repeatably, for a block; the flags of torch come back.

    TF32 keeps ten bits of a number. An attack ends where a query is broken by 1e-4 of a similarity, which is less.
    cuDNN's benchmark mode chooses algorithms by time, anew for each size of a batch, which shrinks in an attack. Where
    torch refuses whatever may not repeat, poolings of controls have no gradient on a GPU.
    """
    cudnn = backends.cudnn.deterministic, backends.cudnn.benchmark
    refuses, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        before = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
    except RuntimeError:  # these are not to be read once the flags of newer versions were set
        flags = _newer()
    else:
        flags = _older(*before)
    try:
        with flags:
            backends.cudnn.deterministic, backends.cudnn.benchmark = True, False
            torch.use_deterministic_algorithms(False)
            yield
    finally:
        backends.cudnn.deterministic, backends.cudnn.benchmark = cudnn
        torch.use_deterministic_algorithms(refuses, warn_only=warns)


@contextmanager
def _older(products: str, convolutions: bool) -> Iterator[None]:
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        backends.cudnn.allow_tf32 = convolutions


@contextmanager
def _newer() -> Iterator[None]:
    places = (backends, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
