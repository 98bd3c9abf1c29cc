"""Named random generators: every draw of an experiment comes from one, derived from the seed and a purpose."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(seed: int, *purpose: object) -> int:
    """A 63-bit seed that depends on ``seed`` and on every word of ``purpose``, the same on every machine."""
    digest = hashlib.sha256(repr((seed, *map(str, purpose))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_generator(seed: int, *purpose: object) -> torch.Generator:
    """A CPU generator for torch draws. Draws are made on the CPU so that every device sees the same ones."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


def numpy_generator(seed: int, *purpose: object) -> np.random.Generator:
    """A generator for numpy draws."""
    return np.random.default_rng(derive_seed(seed, *purpose))


@contextmanager
def seeded_global(seed: int, *purpose: object) -> Iterator[None]:
    """Seed torch's global CPU generator for a block that can use no other (weight initialisation), then restore it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, *purpose))
        yield
