"""How images are held: as 8-bit pixels where they are such, else as floats from 0 to 255, read early or late.

8-bit images come back exactly, others within 1.2e-7: their attack, and what is saved of it, starts from those values.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

OVERSHOT = 0.5  # least distance from [0, 1] of images that cannot come from resizing alone
AT_ONCE = 256  # images that are converted at a time: copies of a whole gallery may not fit into memory
Side = int | Sequence[int]
"""Side of a square, or height and width, in pixels."""
EIGHT_BITS = 1e-6  # images that are this close to multiples of 1/255 are kept as uint8, which is exact


@dataclass(frozen=True)
class Lazy:
    """Images that are read when they are asked for; indexed like an array (N, H, W, 3) of 0 to 255.

    Attributes:
        read: row -> image (H, W, 3), uint8, or float32 from 0 to 255.
        shape: of the array that this stands for.
        threads: whether several threads may read at once. A dataset of torch promises no such thing.
        names: of the images, for messages.
    """

    read: Callable[[int], np.ndarray]
    shape: tuple[int, int, int, int]
    threads: bool = False
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """Read one image, or several, chosen like rows of an array.

        Raises:
            ValueError: an image has another size than the first.
        """
        if isinstance(rows, int | np.integer):
            return self._checked(int(rows))
        numbers = np.arange(len(self))[rows]
        if not len(numbers):
            return np.empty((0, *self.shape[1:]), np.uint8)
        if not self.threads:
            return np.stack([self._checked(number) for number in numbers.tolist()])
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(self._checked, numbers.tolist())))

    def _checked(self, row: int) -> np.ndarray:
        image = self.read(row)
        if image.shape != self.shape[1:]:
            (height, width), (tall, wide) = self.shape[1:3], image.shape[:2]
            name = self.names[row] if self.names else f"image {row}"
            raise ValueError(
                f"{name} has {tall} x {wide} pixels and the first image {height} x {width}; give size=224 for files "
                "and PIL images, or a transform to one size"
            )
        return image


def to_pixels(image: Any) -> np.ndarray:
    """Return one image (H, W, 3), uint8 or float32 from 0 to 255.

    Args:
        image: a PIL image, or a tensor or array as :func:`stored` takes many.

    Raises:
        ValueError: it is no image of three channels, or not in [0, 1].
    """
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"))
    array = image if isinstance(image, Tensor | np.ndarray) else np.asarray(image)
    if array.ndim != 3:
        raise ValueError(f"an image has shape {tuple(array.shape)}; it must be (3, H, W)")
    return stored(array[None])[0]


def stored(images: Tensor | np.ndarray) -> np.ndarray:
    """Return images (N, H, W, 3), as uint8 where they are 8-bit images, else as float32 from 0 to 255.

    Args:
        images: floats (N, 3, H, W) in [0, 1], or uint8; channels may come last.

    Raises:
        ValueError: they have another shape, type or range.
    """
    if isinstance(images, np.ndarray):
        images = np.ascontiguousarray(images)  # torch takes no negative strides, which mirroring and BGR to RGB make
    try:
        values = torch.as_tensor(images).detach().cpu()
    except TypeError as error:  # objects, text
        raise ValueError(f"images hold {images.dtype}; give uint8 from 0 to 255, or floats in [0, 1]") from error
    if values.ndim != 4 or 3 not in (values.shape[1], values.shape[3]):
        raise ValueError(
            f"images have shape {tuple(values.shape)}; they must be (N, 3, H, W): repeat the channel of grey ones"
        )
    last = values.shape[3] == 3 and (values.shape[1] != 3 or isinstance(images, np.ndarray))
    values = values if last else values.permute(0, 2, 3, 1)
    if values.dtype == torch.uint8:
        return np.ascontiguousarray(values.numpy())
    if not values.is_floating_point():
        raise ValueError(f"images hold {values.dtype}; give uint8 from 0 to 255, or floats in [0, 1]")
    if not values.numel():
        return np.empty((0, *values.shape[1:]), np.uint8)
    check_range(values)
    exact = all(map(_eight_bits, values.split(AT_ONCE)))
    found = np.empty(values.shape, np.uint8 if exact else np.float32)
    for first, part in zip(range(0, len(values), AT_ONCE), values.split(AT_ONCE), strict=True):
        scaled = part.float() * 255
        found[first : first + len(part)] = (scaled.round() if exact else scaled.clamp(0, 255)).numpy()
    return found


def _eight_bits(values: Tensor) -> bool:
    scaled = values.float() * 255
    return bool(((scaled - scaled.round()).abs() <= 255 * EIGHT_BITS).all())


def check_side(size: Side | None) -> None:
    """Raise ValueError if a size is given that is neither a number of pixels nor two of them."""
    several = isinstance(size, tuple | list)
    sides = size if several else [] if size is None else [size]
    if (several and len(size) != 2) or not all(isinstance(side, Integral) and side >= 1 for side in sides):
        raise ValueError(
            f"size is {size!r}; it must be a whole number of pixels, at least 1, or two of them: (height, width)"
        )


def check_range(values: Tensor) -> None:
    """Raise ValueError if float images are not in [0, 1]; the sentence says what they seem to be."""
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        if low > -OVERSHOT and high < 1 + OVERSHOT:
            what = "resized with overshoot; clip them to [0, 1]"
        elif low < 0:
            what = (
                "normalised; pass them in [0, 1] and put the normalisation into the model: dml.wrap(model, mean, std)"
            )
        elif high <= 255:
            what = "in 0 to 255; divide them by 255, or pass uint8, so that eps means the same for every model"
        else:
            what = "not images; pass them in [0, 1]"
        raise ValueError(f"images reach from {low:.3g} to {high:.3g}, so they seem to be {what}")
