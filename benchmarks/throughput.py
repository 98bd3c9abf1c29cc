"""How many images a second robust training takes, in float32, in bfloat16, and in ways that it does not use.

Float32 and bfloat16 are what training computes, whose steps repeat bit for bit. On a GPU two more rows tell what that
costs: cuDNN's fastest algorithms, which may not repeat, and the model compiled as well.

A step of `robust` perturbs one image per tuple in k PGD steps and trains on the clean and the perturbed batch. Its
floor is k (F + B_in) + 2 (F + B), of passes timed in the same run and format. Its share of the peak is its rate of
arithmetic, where B_in counts as much as F and B twice that, over that of a large matrix product in bfloat16, or in
float32 on a processor that has no bfloat16. Without a GPU: conv4 alone, and nothing compiled, unless it is asked for.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import in_turns, model_and_numbers
from dml.defenses.robust import Robust
from dml.losses.triplet import Triplet
from dml.models.bfloat16 import computed
from dml.models.embedder import best_device, build

GPU = (("resnet18", 128), ("resnet50", 224))  # backbone, side of an image
CPU = (("conv4", 32),)
BATCH, STEPS, ROUNDS = 112, 5, 7


class Format:
    """A way to compute: how many bits, whether steps repeat, and whether the model is compiled.

    Args:
        model: images -> embeddings.
        short: layers in bfloat16.
        repeats: cuDNN is kept to algorithms that give the same bits every time, as in training.
    """

    def __init__(
        self, model: nn.Module | Callable[[Tensor], Tensor], images: Tensor, short: bool, repeats: bool = True
    ) -> None:
        self.model, self.images, self.short, self.repeats = model, images, short, repeats
        self.labels = torch.arange(len(images), device=images.device) // 4
        self.loss = Triplet(math.ceil(len(images) / 4), 128, miner="distance_weighted").to(images.device)

    def full(self) -> None:
        """Take a forward and a full backward pass."""
        with self._algorithms():
            self._backward(self._embed(self.images).sum())

    def inward(self) -> None:
        """Take a forward pass, and a backward pass to the images."""
        changed = self.images.clone().requires_grad_(True)
        with self._algorithms():
            torch.autograd.grad(self._embed(changed).sum(), changed)
            self._wait()

    def step(self, steps: int) -> None:
        """Take a robust step, without the optimiser's."""
        draw, labels = torch.Generator().manual_seed(0), self.labels
        with self._algorithms():
            with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.short):
                values = Robust(steps=steps)(self.model, self.images, labels, self.loss, draw)
            self._backward(values.mean())

    def _algorithms(self) -> AbstractContextManager[None]:
        """Which of cuDNN's algorithms may run."""
        backend = torch.backends.cudnn
        chosen = {"deterministic": self.repeats, "benchmark": not self.repeats, "allow_tf32": backend.allow_tf32}
        return backend.flags(enabled=True, **chosen)  # which is off where it is not said

    def _embed(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.short):
            return self.model(images)

    def _backward(self, value: Tensor) -> None:
        self.model.zero_grad(set_to_none=True)
        value.backward()
        self._wait()

    def _wait(self) -> None:
        if self.images.is_cuda:
            torch.cuda.synchronize()


def compiled(model: nn.Module, images: Tensor) -> dict[str, Format]:
    """Return the model compiled, or nothing where there is no compiler for it, which is told."""
    way = Format(torch.compile(model), images, True, repeats=False)
    try:
        way.full()
        way.inward()
    except Exception as error:  # of torch, the compiler or the driver
        print(f"not compiled: {(str(error).splitlines() or [type(error).__name__])[0]}")
        return {}
    return {"the same, compiled": way}


def peak(device: torch.device, size: int, dtype: torch.dtype) -> float:
    """Return the operations a second of a matrix product of this size and number format."""
    matrix = torch.randn(size, size, device=device, dtype=dtype)

    def product() -> None:
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize()

    return 2 * size**3 / in_turns({"product": product}, 5)["product"]


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Print a line per model and format; return the ratios to the floor and to float32."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    device = best_device()
    cuda = device.type == "cuda"
    models = GPU if cuda else CPU
    parser.add_argument("--models", nargs="+", type=model_and_numbers, default=models, help="backbone:side")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--steps", type=int, default=STEPS, help="of PGD")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which the median counts")
    parser.add_argument("--product", type=int, default=8192 if cuda else 2048, help="side of the matrix product")
    parser.add_argument("--others", action=argparse.BooleanOptionalAction, default=cuda, help="ways not used as well")
    chosen, ratios = parser.parse_args(words), {}
    dtype = torch.bfloat16 if computed(device) else torch.float32
    fastest, told = peak(device, chosen.product, dtype), torch.cuda.get_device_name() if cuda else "CPU"
    print(f"{told}: {fastest / 1e12:.2f} Tflop/s of a product in {str(dtype).removeprefix('torch.')}")
    print(f"{'':42}{'images/s':>10}{'/ float32':>11}{'time / floor':>14}{'of the peak':>13}")
    for backbone, side in chosen.models:
        images = torch.rand(chosen.batch, 3, side, side, device=device)
        model = build(backbone, 128, seed=0).to(device).train()
        formats = {"float32": Format(model, images, False), "bfloat16": Format(model, images, True)}
        if chosen.others:
            formats["bfloat16, may not repeat"] = Format(model, images, True, repeats=False)
            formats |= compiled(model, images)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(images)
        # F + B_in counts as two forward passes, F + B as three.
        operations = counter.get_total_flops() * (2 * chosen.steps + 3 * 2)
        work: dict[str, Callable[[], None]] = {}
        for name, way in formats.items():
            work |= {f"{name} F + B": way.full, f"{name} F + B_in": way.inward}
            work[f"{name} step"] = lambda way=way: way.step(chosen.steps)
        seconds = in_turns(work, chosen.rounds)
        for name in formats:
            step, full, inward = (seconds[f"{name} {part}"] for part in ("step", "F + B", "F + B_in"))
            floor = step / (chosen.steps * inward + 2 * full)
            gain = seconds["float32 step"] / step
            share = operations / step / fastest
            told = f"{backbone}, {side} px, {name}"
            print(f"{told:42}{chosen.batch / step:10.1f}{gain:11.2f}{floor:14.2f}{share:13.1%}", flush=True)
            ratios[f"{told}, step / floor"] = floor
            if name != "float32":
                ratios[f"{told} / float32"] = 1 / gain
    return ratios


if __name__ == "__main__":
    main()
