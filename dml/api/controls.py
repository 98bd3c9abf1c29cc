"""Controls beside somebody's model: which fit its images, and their fit to training images."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dml.config.build import evaluation as build
from dml.data.base import Dataset, Split
from dml.models.palette import Palette

SIDES = {"pixels_8": 8, "pixels_16": 16, "pixels_linear": 8}  # of the least image that each averages boxes to

LEAST = {"soft_histogram": Palette.pooled}  # side of an image, pixels, that a control can look at
HISTOGRAMS = ("colour_histogram", "soft_histogram")
LARGEST = 64  # side of an image, pixels, whose colours are counted: an attack at 224 pixels would take 12 times as long


class Averaged(nn.Module):
    """A control that looks at images averaged to at most :data:`LARGEST` pixels a side."""

    def __init__(self, control: nn.Module) -> None:
        super().__init__()
        self.control = control

    def forward(self, images: Tensor) -> Tensor:
        """Return the control's embeddings (B, D) of images (B, 3, H, W), averaged over boxes if they are large."""
        return self.control(F.adaptive_avg_pool2d(images, [min(side, LARGEST) for side in images.shape[2:]]))


def control(name: str, shape: Sequence[int]) -> nn.Module:
    """Build a control for images (height, width); a histogram counts the colours of large ones after averaging them.

    Raises:
        ValueError: the name is unknown.
    """
    found = build.control(name)
    return Averaged(found) if name in HISTOGRAMS and max(shape) > LARGEST else found


def controls(
    names: str | Sequence[str],
    split: Split,
    data: Dataset | None,
    seed: int,
    report: Callable[[str], None],
    notes: list[str],
) -> dict[str, nn.Module]:
    """Build controls by name; those whose boxes do not divide the images are left out, and a note says so.

    Args:
        names: as in :data:`dml.evaluation.CONTROLS`, one or several.
        split: the images that are attacked.
        data: to fit those controls to that can be fitted; None leaves these out.
        seed: of the fit.
        report: receives one line per fit.
        notes: what the user should know is added.

    Raises:
        ValueError: a name is unknown, or the training images have another size or cannot be fitted to.
    """
    shape = split.images.shape[1:3]
    if data is not None and data.train.images.shape[1:3] != shape:
        raise ValueError(
            f"training images have {data.train.images.shape[1:3]} pixels and the others {shape}; bring them to one size"
        )
    found, odd, small = {}, [], []
    for name in (names,) if isinstance(names, str) else names:
        built = control(name, shape)
        if any(side % SIDES.get(name, 1) for side in shape):
            odd.append(name)
            continue
        if min(shape) < LEAST.get(name, 1):
            small.append(name)
            continue
        if not hasattr(built, "fit"):
            found[name] = built
        elif data is not None:
            found[name] = built.fit(data, seed, report=report)
    if counted := [name for name in found if isinstance(found[name], Averaged)]:
        notes.append(f"{' and '.join(counted)} looked at images averaged to at most {LARGEST} pixels a side")
    if odd := [name for name in odd if name != "pixels_linear" or data is not None]:
        notes.append(
            f"images of {shape[0]} x {shape[1]} pixels do not divide into the boxes of {', '.join(odd)}, left out as "
            "controls; with a height and width that are multiples of 16 all controls stand beside the model"
        )
    if small:
        notes.append(
            f"images of {shape[0]} x {shape[1]} pixels are too small for {', '.join(small)}, left out as control"
        )
    return found
