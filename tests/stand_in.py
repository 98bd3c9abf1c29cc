"""A GPU that is not there: tensors that say that they lie on ``cuda:0`` and are computed on the CPU.

Where a real GPU refuses an operation, so does this one: tensors of two devices, a copy to numpy, a generator of another
device. Code that runs here puts its tensors where they belong. Nothing is learnt about speed, memory or rounding,
but for what a GPU is waited for.
"""

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
BELOW = torch.device("meta")  # the device in the eyes of torch's C++ code, which without a GPU has no cuda
MOVES = ("aten::copy_", "aten::_to_copy")  # between devices
INDEXES = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")  # which a real GPU takes from the CPU, too
VALUES = ("aten::_local_scalar_dense", "aten::equal")  # their results are Python's
SIZES = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave")
WAITS = {*VALUES, *(f"aten::{name}" for name in SIZES)}  # Python goes on when a GPU knows their values or sizes
waited: list[str] = []  # operations that did so, and "to the CPU", since the stand-in was attached


class OnGPU(Tensor):
    """A tensor on the GPU; ``value`` holds its numbers."""

    value: Tensor
    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls: type["OnGPU"], value: Tensor) -> "OnGPU":
        described = {name: getattr(value, name) for name in ("dtype", "layout")}
        place = {"strides": value.stride(), "storage_offset": value.storage_offset(), "device": BELOW}
        made = Tensor._make_wrapper_subclass(cls, value.size(), **described, **place)
        made.value = value.detach()
        return made

    def __init__(self, value: Tensor) -> None:
        """Take what ``__new__`` has used already."""

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, given: tuple = (), named: dict | None = None) -> Any:
        return _computed(function, given, named or {})


class Generator(torch.Generator):
    """A generator that belongs to a device."""

    def __new__(cls, device: torch.device | str = "cpu") -> torch.Generator:
        return super().__new__(cls)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.there = torch.device(device).type == "cuda"


def attach(patched: pytest.MonkeyPatch) -> Iterable[Any]:
    """Give the modes in which the machine has one GPU, after telling torch so."""
    waited.clear()
    answers = {"is_available": True, "device_count": 1, "is_bf16_supported": False, "get_device_name": "stand-in"}
    memory = {"memory_allocated": 0, "memory_reserved": 0, "max_memory_allocated": 8, "mem_get_info": (2**36, 2**36)}
    for name, answer in (answers | memory).items():
        patched.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    for name in ("synchronize", "reset_peak_memory_stats"):
        patched.setattr(torch.cuda, name, lambda *_: None)
    patched.setattr(torch, "Generator", Generator)
    patched.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None)
    # Modes hold in their own thread alone, and torch.save would write Python objects.
    patched.setattr("dml.data.loading.ahead", lambda items, count: items)
    save = torch.save
    patched.setattr(torch, "save", lambda content, file: save(tree_map(_value, content), file))
    return _Operations(), _Calls()


def _value(given: Any) -> Any:
    return given.value if isinstance(given, OnGPU) else given


def _computed(function: Any, given: tuple, named: dict[str, Any]) -> Any:
    """Compute one operation of torch on the CPU; its results are on the GPU if its tensors are, or if it is told so."""
    name = function._schema.name
    tensors = [leaf for leaf in tree_leaves((given, named)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, OnGPU) for tensor in tensors)
    checked = [given[0], *given[2:]] if name in INDEXES else tensors
    here = [one for one in tree_leaves(checked) if isinstance(one, Tensor) and not isinstance(one, OnGPU) and one.ndim]
    if there and here and name not in MOVES:
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} got one on the CPU, {here[0].shape}")
    masks = [one for one in tree_leaves(given[1:2]) if isinstance(one, Tensor) and one.dtype == torch.bool]
    if there and (name in WAITS or (name in INDEXES and masks)):
        waited.append(name)
    if named.get("device") is not None:
        there = torch.device(named["device"]).type != "cpu"
        named = named | {"device": torch.device("cpu")}
    with _disable_current_modes():
        found = function(*tree_map(_value, given), **tree_map(_value, named))
    changed = {id(_value(tensor)): tensor for tensor in tensors}

    def placed(result: Any) -> Any:
        if not isinstance(result, Tensor) or name in VALUES:
            return result
        return changed.get(id(result), OnGPU(result) if there else result)

    return tree_map(placed, found)


class _Operations(TorchDispatchMode):
    """Operations without a tensor, which make one."""

    def __torch_dispatch__(self, function: Any, types: Any, given: tuple = (), named: dict | None = None) -> Any:
        return _computed(function, given, named or {})


class _Calls(TorchFunctionMode):
    """Calls in which a device is named, asked for, or refused."""

    def __torch_function__(self, function: Callable, types: Any, given: tuple = (), named: dict | None = None) -> Any:
        named = dict(named or {})
        there = given and isinstance(given[0], OnGPU)
        if there and function in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if there and function is Tensor.tolist:
            return given[0].value.tolist()
        if function in (Tensor.cpu, Tensor.cuda):
            return _moved(given[0], torch.device(function.__name__))
        if function is Tensor.to:
            return _to(*given, **named)
        if function in (torch.tensor, torch.as_tensor):
            device = named.pop("device", None)
            made = function(*given, **named)
            return made if device is None else _moved(made, torch.device(device))
        return function(*given, **_checked(given, named))


def _checked(given: tuple, named: dict[str, Any]) -> Mapping[str, Any]:
    """Return the arguments with the GPU as it is called below, after a look at the generator."""
    there = any(isinstance(leaf, OnGPU) for leaf in tree_leaves((given, named)))
    if named.get("device") is not None:
        there = torch.device(named["device"]).type == "cuda"
        named["device"] = BELOW if there else named["device"]
    generator = named.get("generator")
    if generator is not None and getattr(generator, "there", False) != there:
        raise RuntimeError(f"Expected a {'cuda' if there else 'cpu'} device type for generator")
    return named


def _to(tensor: Tensor, *given: Any, device: Any = None, dtype: Any = None, other: Any = None, **named: Any) -> Tensor:
    """Do what ``Tensor.to`` does with a device, a dtype or another tensor, in any order."""
    for one in (*given, other):
        if isinstance(one, Tensor):
            device, dtype = one.device, one.dtype
        elif isinstance(one, torch.dtype):
            dtype = one
        elif isinstance(one, torch.device | str):
            device = one
    named = {name: value for name, value in named.items() if name in ("copy", "memory_format") and value is not None}
    moved = tensor if device is None else _moved(tensor, torch.device(device))
    return moved if dtype is None and not named else moved.to(dtype or moved.dtype, **named)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    there = device.type == "cuda"
    return tensor if isinstance(tensor, OnGPU) == there else (_Up if there else _Down).apply(tensor)


class _Up(torch.autograd.Function):
    """To the GPU, and gradients back."""

    @staticmethod
    def forward(context: SimpleNamespace, tensor: Tensor) -> Tensor:
        return OnGPU(tensor.detach().clone())

    @staticmethod
    def backward(context: SimpleNamespace, gradient: Tensor) -> Tensor:
        return gradient.value


class _Down(torch.autograd.Function):
    """From the GPU, and gradients back."""

    @staticmethod
    def forward(context: SimpleNamespace, tensor: Tensor) -> Tensor:
        waited.append("to the CPU")
        return tensor.value.clone()

    @staticmethod
    def backward(context: SimpleNamespace, gradient: Tensor) -> Tensor:
        return OnGPU(gradient)
