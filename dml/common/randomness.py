"""Named random generators: every draw of an experiment comes from one, derived from the seed and a purpose."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed that depends on ``seed`` and on every word of ``purpose``, the same on every machine."""
    digest = hashlib.sha256(repr((seed, *map(str, purpose))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator for torch draws, the same on every device; for whole batches see :func:`uniform`."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


def uniform(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers between 0 and 1, of the dtype of ``like`` and drawn on its device.

    One core takes longer to draw a batch of noise than a GPU takes to embed it. So a GPU draws for itself, with a
    generator that the one of the CPU seeds: what an experiment draws depends on its seed and on the kind of device.

    Args:
        shape: of the result, of any number of dimensions.
        like: whose dtype and device the result has.
        generator: on the CPU.
    """
    return torch.rand(tuple(shape), generator=_drawing_on(like.device, generator), device=like.device).to(like)


def normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of a shape, drawn as by :func:`uniform`."""
    return torch.randn(tuple(shape), generator=_drawing_on(like.device, generator), device=like.device).to(like)


def _drawing_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    if device.type == "cpu":
        return generator
    seed = int(torch.randint(torch.iinfo(torch.int64).max, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def numpy_generator(seed: int, *purpose: object) -> np.random.Generator:
    """A generator for numpy draws."""
    return np.random.default_rng(derive_seed(seed, *purpose))


@contextmanager
def seeded_global(seed: int, *purpose: object) -> Iterator[None]:
    """Seed torch's global CPU generator for a block that can use no other (weight initialisation), then restore it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, *purpose))
        yield
