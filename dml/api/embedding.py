"""Somebody's model as the attacks need it: images in, embeddings out, its cost counted, and left as it was."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dml.models.embedder import best_device, device_of, evaluating

PIXELS = {"cpu": 2**19, "cuda": 2**23}  # of a batch whose intermediate values are kept at a time, to bound memory
SHARE = 0.5  # of a GPU's free memory for them; similarities to the gallery need some, too

HALF = (torch.float16, torch.bfloat16)
EVERY = 30.0  # seconds between two lines on images that are being embedded


class Embedding(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> what ``given`` returns, as a tensor (B, D) of float32 or float64.

    A batch of many pixels goes through in parts. Gradients of such a batch are recomputed part by part, which bounds
    memory at the price of a second forward pass.

    Args:
        given: a module or any callable.
        device: of the images.

    Attributes:
        forwards, backwards: images that went through so far.
        half: the half-precision format that the model was seen to compute in, or None.
        most: images of which a GPU can keep the intermediate values, as :func:`bounded` found.
    """

    def __init__(self, given: Callable[[Tensor], Any], device: torch.device) -> None:
        super().__init__()
        self.given = given
        self.forwards = self.backwards = 0
        self.register_buffer("place", torch.zeros((), device=device), persistent=False)
        tensors = given.parameters() if isinstance(given, nn.Module) else ()
        self.half: torch.dtype | None = None
        self.most: int | None = None
        self.dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, D) of images (B, 3, H, W) in [0, 1]."""
        size = at_once(images.shape[2:], images.device)
        size = size if self.most is None else min(size, self.most)
        if len(images) <= size:
            found = self._embed(images)
        elif torch.is_grad_enabled() and images.requires_grad:
            kept = {"use_reentrant": False, "preserve_rng_state": False}
            found = torch.cat([checkpoint(self._embed, part, **kept) for part in images.split(size)])
        else:
            found = torch.cat([self._embed(part) for part in images.split(size)])
        if found.requires_grad:
            found.register_hook(self._count)
        return found

    def _embed(self, images: Tensor) -> Tensor:
        self.forwards += len(images)
        given = images.to(self.dtype).contiguous()
        found = self.given(given.clone() if given is images else given)  # a model may normalise in place
        if isinstance(found, tuple | list | dict):
            raise ValueError(
                f"embed gives a {type(found).__name__}; it must give one tensor of embeddings (B, D): "
                "dml.wrap(model, output=...) takes one of several"
            )
        try:
            found = torch.as_tensor(found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"embed gives a {type(found).__name__}; it must give a tensor (B, D)") from error
        if found.is_complex():
            raise ValueError("embed gives complex numbers; it must give real ones")
        self.half = next((dtype for dtype in (found.dtype, self.dtype) if dtype in HALF), self.half)
        # Cloned, since a compiled model may give the same memory again at its next call.
        return (found if found.dtype == torch.float64 else found.float()).to(images.device).clone()

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def at_once(shape: tuple[int, ...], device: torch.device) -> int:
    """Return how many images of some height and width to put through a model at a time."""
    return max(1, PIXELS.get(device.type, PIXELS["cpu"]) // (shape[0] * shape[1]))


@contextmanager
def bounded(embedding: Embedding, count: int) -> Iterator[None]:
    """On a GPU, bound how many images go through at a time by what a few take with gradients inside the block.

    A large transformer keeps ten times as much of an image as a ResNet does.

    Args:
        embedding: of the model.
        count: images that go through it at once inside the block.
    """
    device = embedding.place.device
    if device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield
    taken = max(1, torch.cuda.max_memory_allocated(device) - before)
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - before
    embedding.most = max(1, int(SHARE * free * count / taken))


@contextmanager
def progress(embedding: Embedding, total: int, report: Callable[[str], None]) -> Iterator[None]:
    """Say how many images are to be embedded, and at intervals how many are done and how long the others will take.

    Args:
        embedding: of the model.
        total: images that go through it inside the block.
        report: receives each line.
    """
    begun = last = perf_counter()
    before = embedding.forwards

    def hook(*_: Any) -> None:
        nonlocal last
        now, done = perf_counter(), embedding.forwards - before
        if now - last >= EVERY and 0 < done < total:
            last = now
            report(f"embedded {done:,}/{total:,} images{wait((now - begun) / done * (total - done))}")

    report(f"embedding {total:,} images")
    handle = embedding.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def wait(seconds: float) -> str:
    """Return how the end of a line says the time left."""
    return f", {int(seconds // 60)}:{int(seconds % 60):02d} left"


def weights_sha256(given: Any) -> str | None:
    """Return the digest of a module's weights, equal to :func:`dml.models.weights.digest`, for any number format.

    None for a function, which has no weights to look at, and for a module whose state holds more than tensors.
    """
    state = given.state_dict() if isinstance(given, nn.Module) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        return None
    total = hashlib.sha256()
    for name, value in sorted(state.items()):
        total.update(name.encode() + value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@contextmanager
def lent(given: Any, device: torch.device | str | None) -> Iterator[torch.device]:
    """Move a module to a device, in evaluation mode, for a block; mode and device of all its parts come back.

    Args:
        given: the module; any other callable is left where it is, and gets images on the CPU by default.
        device: None leaves a module on its accelerator, and moves one with weights from the CPU to the GPU if there is
            one; a wrapped function may hold a model that stays on the CPU.

    Yields:
        The device to put images on.

    Raises:
        ValueError: there is no such device, or the module cannot be moved there.
    """
    try:
        wanted = None if device is None else torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is none that torch knows; give cpu, cuda or cuda:1") from error
    if not isinstance(given, nn.Module):
        _check(wanted or torch.device("cpu"))
        yield wanted or torch.device("cpu")
        return
    home = device_of(given)
    has_weights = any(True for _ in given.parameters())
    chosen = wanted or (best_device() if home.type == "cpu" and has_weights else home)
    spread = len({tensor.device for tensor in (*given.parameters(), *given.buffers())}) > 1
    with evaluating(given):
        try:
            if not spread:
                _move(given, chosen)
            yield chosen
        finally:
            if not spread:
                given.to(home)


def _check(device: torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # no such device, or a torch without support for it
        raise ValueError(f"images cannot be put on {device}: {str(error).splitlines()[0]}") from error


def _move(given: nn.Module, device: torch.device) -> None:
    try:
        given.to(device)
    except RuntimeError as error:  # no such device, no driver, or no memory
        raise ValueError(f"the model cannot be moved to {device}: {str(error).splitlines()[0]}") from error
