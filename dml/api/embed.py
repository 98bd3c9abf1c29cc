"""`dml.embed`: embeddings of images, for other scores."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dml.api.checks import LOOKED_AT, check_calls, check_finite, check_module
from dml.api.embedding import Embedding, lent
from dml.api.full_precision import full_precision
from dml.api.images import splits
from dml.api.loading import Prepare
from dml.api.pixels import Side
from dml.api.similarity import search_over
from dml.api.wrap import as_module
from dml.data.sampling import evenly
from dml.data.transforms import to_float


def embed(
    model: Callable[[Tensor], Any],
    images: Any,
    labels: Any = None,
    *,
    size: Side | None = None,
    transform: Prepare | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, np.ndarray]:
    """Return embeddings (N, D) of unit length in float32 on the CPU, and the names (N,) of their classes, as text.

    Args:
        model, images, labels, size, transform, device: see :func:`dml.evaluate`. Of a prepared dataset the test classes
            are taken.

    Raises:
        ValueError: an argument cannot be used, or embeddings have a wrong shape, are not finite, or change between two
            calls; one sentence says why.
    """
    model = as_module(model)
    check_module(model, [])
    split, queries = splits(images, labels, None, None, None, size=size, transform=transform)
    if queries is not None:
        raise ValueError("these images are queries and a gallery; embed the two apart, from a folder or tensors each")
    with full_precision(), lent(model, device) as place:
        embedding = Embedding(model, place)
        check_calls(embedding, to_float(split.images[evenly(LOOKED_AT, len(split))], place))
        found = search_over(embedding, split, None, "cosine").gallery.embeddings
    check_finite(found, "embeddings")
    return found.float().cpu(), np.array(split.class_names)[split.labels]
