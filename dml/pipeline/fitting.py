"""Chapter 4, for controls that are fitted to the training classes, such as a linear metric."""

from dataclasses import replace

from dml.models.embedder import best_device
from dml.pipeline.stages.attack import Target
from dml.retrieval.index import Search


def fitted(target: Target) -> Target:
    """Return the target with its control fitted to the dataset; any other target as it is.

    A control asks for this by a method ``fit(data, seed) -> control``, which uses training classes only. It decides
    everything: its code and the prepared images are what a control's digest covers.

    Args:
        target: as :func:`dml.pipeline.stages.attack.open_target` opens it.
    """
    fit = getattr(target.search.model, "fit", None)
    if fit is None:
        return target
    model = fit(target.data, target.seed).to(best_device())
    return replace(target, search=Search.over(model, target.data.test, target.data.queries))
