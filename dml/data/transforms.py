"""Images as tensors, and the random changes of training images."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Part = tuple[int, int, int, int]
"""Top, left, height and width of a part of an image, pixels."""


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images.

    Attributes:
        shift: pixels that an image may move by, in each direction; used without a crop.
        flip: whether to mirror half of the images.
        crop: side of the random part of an image to train on, 0 for the whole image.
        crop_scale: least and greatest share of the image's area in that part.
    """

    shift: int = 0
    flip: bool = False
    crop: int = 0
    crop_scale: tuple[float, float] = (0.08, 1.0)


def to_float(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 images (B, H, W, 3) -> float images (B, 3, H, W) in [0, 1], channels last in memory."""
    floats = torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float()
    return floats.div_(floats.new_full((1,), 255))  # by a number, a GPU would multiply by 1/255, which rounds otherwise


def shifted(images: np.ndarray, augmentation: Augmentation, generator: np.random.Generator) -> np.ndarray:
    """Move each uint8 image (B, H, W, 3) by up to ``shift`` pixels (edges repeat), and mirror half of them."""
    shift, flip = augmentation.shift, augmentation.flip
    if not shift and not flip:
        return images
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    out = np.empty_like(images)
    for row, (top, left) in enumerate(generator.integers(0, 2 * shift + 1, (len(images), 2))):
        image = padded[row, top : top + height, left : left + width]
        out[row] = image[:, ::-1] if flip and generator.random() < 0.5 else image
    return out


def cropped(
    images: Sequence[np.ndarray],
    augmentation: Augmentation,
    generator: np.random.Generator,
    each: Callable[..., Iterable[Tensor]] = map,
) -> np.ndarray:
    """Random parts (B, crop, crop, 3) of uint8 images (H, W, 3) that may differ in shape, half of them mirrored.

    Args:
        images: up to their edges.
        augmentation: side, scale and whether to mirror.
        generator: of all draws, which are made in the order of the images.
        each: ``map``, or that of a pool of threads.
    """
    drawn = [
        (
            random_part(*image.shape[:2], augmentation.crop_scale, generator),
            augmentation.flip and generator.random() < 0.5,
        )
        for image in images
    ]
    cut = each(lambda image, draw: resized_part(image, draw[0], augmentation.crop, draw[1]), images, drawn)
    return torch.stack(list(cut)).permute(0, 2, 3, 1).numpy()


def random_part(height: int, width: int, scale: tuple[float, float], generator: np.random.Generator) -> Part:
    """A random part of an image, drawn as torchvision's RandomResizedCrop draws it.

    Args:
        height, width: of the image.
        scale: least and greatest share of its area; the aspect ratio is 3:4 to 4:3.
        generator: of place and size. If ten draws do not fit, the centre is taken.
    """
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
        wide, tall = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < wide <= width and 0 < tall <= height:
            return int(generator.integers(height - tall + 1)), int(generator.integers(width - wide + 1)), tall, wide
    # The whole of one side, and as much of the other as the ratio allows.
    tall, wide = min(height, round(width / (3 / 4))), min(width, round(height * 4 / 3))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def resized_part(image: np.ndarray, part: Part, side: int, mirror: bool) -> Tensor:
    """A part of a uint8 image (H, W, 3), resized to (3, side, side) uint8 and mirrored if asked."""
    from torchvision.transforms.v2 import functional as transform  # takes seconds to import

    cut = transform.resized_crop(torch.from_numpy(image.copy()).permute(2, 0, 1), *part, [side, side], antialias=True)
    return transform.horizontal_flip(cut) if mirror else cut
