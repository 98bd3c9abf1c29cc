"""Normalised softmax: classification on the unit sphere."""

from dml.losses.pml import PML


class NormalizedSoftmax(PML):
    """Cross-entropy over the cosine similarities to one proxy per class (Zhai and Wu 2019), divided by a temperature.

    A query's value depends on its own embedding alone: where all images of a batch are perturbed at once
    (:class:`dml.defenses.joint.Joint`), each perturbation raises its own image's loss, as for classifiers. The
    reference set is not used. The proxies (classes, dimension) are parameters of the loss, drawn at random.

    Args:
        classes, dimension: see :class:`dml.losses.base.Loss`.
        temperature: of the softmax.

    Raises:
        ValueError: the temperature is not above 0.
    """

    def __init__(self, classes: int, dimension: int, *, temperature: float = 0.05) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        super().__init__(classes, dimension, name="NormalizedSoftmaxLoss", temperature=temperature)
