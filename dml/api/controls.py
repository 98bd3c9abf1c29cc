"""Controls beside somebody's model: which fit its images, and their fit to training images."""

from collections.abc import Callable, Sequence

from torch import nn

from dml.config.build import evaluation as build
from dml.data.base import Dataset, Split

SIDES = {"pixels_8": 8, "pixels_16": 16, "pixels_linear": 8}  # of the least image that each averages boxes to


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
    found, odd = {}, []
    for name in (names,) if isinstance(names, str) else names:
        control = build.control(name)
        if any(side % SIDES.get(name, 1) for side in shape):
            odd.append(name)
            continue
        if not hasattr(control, "fit"):
            found[name] = control
        elif data is not None:
            found[name] = control.fit(data, seed, report=report)
    if odd := [name for name in odd if name != "pixels_linear" or data is not None]:
        notes.append(
            f"images of {shape[0]} x {shape[1]} pixels do not divide into the boxes of {', '.join(odd)}, left out as "
            "controls; with a height and width that are multiples of 16 all controls stand beside the model"
        )
    return found
