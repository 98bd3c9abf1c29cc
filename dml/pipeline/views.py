"""What chapters 1 to 3 show of prepared images and trained models; nothing here decides a result."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dml.common.randomness import numpy_generator, torch_generator
from dml.data import base
from dml.data.sampling import balanced_batches, evenly
from dml.data.transforms import to_float
from dml.evaluation.outcomes import natural_scores
from dml.models.embedder import device_of
from dml.pipeline.stages.train import Training
from dml.retrieval.index import Search
from dml.retrieval.metrics import ranking


def splits(data: base.Dataset) -> dict[str, base.Split]:
    """Return the splits by name; separate queries come last."""
    named = {"train": data.train, "validation": data.validation, "test": data.test}
    return named if data.queries is None else named | {"test queries": data.queries}


def overview(data: base.Dataset) -> pd.DataFrame:
    """Return one row per split: number of classes and images, and height and width of an image in pixels."""
    rows = {name: (len(split.classes), *split.images.shape[:3]) for name, split in splits(data).items()}
    return pd.DataFrame(rows, index=["classes", "images", "height", "width"]).T


def class_sizes(data: base.Dataset) -> pd.DataFrame:
    """Return one row per class: its split and its number of images."""
    parts = [
        pd.DataFrame({"split": name, "images": np.unique(split.labels, return_counts=True)[1]})
        for name, split in splits(data).items()
    ]
    return pd.concat(parts, ignore_index=True)


def sample(split: base.Split, *, classes: int = 8, images: int = 10) -> tuple[list[np.ndarray], list[str]]:
    """Return the first images of evenly spaced classes, and the classes' names: rows for ``plots.image_grid``."""
    chosen = split.classes[:: max(1, len(split.classes) // classes)][:classes]
    rows = [split.images[split.labels == label][:images] for label in chosen]
    return rows, [split.class_names[label][:32] for label in chosen]


def trained_on(training: Training, *, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Return images that the defence makes the model learn from, beside the clean images that they come from.

    Args:
        training: a finished training.
        classes: in the batch to look at, two images of each.

    Returns:
        clean, perturbed: each (N, 3, H, W) in [0, 1]. A defence that perturbs nothing gives the same images twice.
    """
    train, model = training.data.train, training.model
    draw = numpy_generator(training.seed, "a batch to look at")
    (rows,) = balanced_batches(
        train.labels, classes=min(classes, len(train.classes)), images_per_class=2, batches=1, generator=draw
    )
    images = to_float(train.images[rows], device_of(model))
    labels = torch.from_numpy(np.asarray(train.labels[rows])).to(images.device)
    given: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach()))
    try:  # what a defence trains on is the last that it shows the model
        training.defense(model, images, labels, training.loss, torch_generator(training.seed, "tuples to look at"), 1.0)
    finally:
        hook.remove()
    distance = torch.cdist(given[-1].flatten(1), images.flatten(1), p=float("inf"))
    return images[distance.argmin(1)], given[-1]


def distances(training: Training, clean: Tensor, perturbed: Tensor) -> pd.DataFrame:
    """Return how far each image's embedding moves, and quantiles of it beside distances between clean images.

    Args:
        training: a finished training.
        clean, perturbed: (N, 3, H, W), as :func:`trained_on` gives them.
    """
    model = training.model.eval()
    with torch.no_grad():
        before, after = model(clean), model(perturbed)
    between = torch.pdist(before.unique(dim=0))
    rows = {"clean to perturbed": (before - after).norm(dim=1), "between clean images": between}
    return pd.DataFrame({name: pd.Series(values.cpu().numpy()).describe() for name, values in rows.items()}).T.round(3)


def neighbours(training: Training, *, queries: int = 6, ranks: int = 5) -> tuple[list[np.ndarray], list[str]]:
    """Return held-out images with their nearest neighbours, and the queries' classes: rows for ``plots.image_grid``."""
    split = training.data.validation
    search, rows = Search.over(training.model, split), evenly(queries, len(split))
    chosen = search.queries(rows)
    embeddings = search.gallery.embeddings[torch.from_numpy(rows).to(search.gallery.labels.device)]
    top = ranking(embeddings, chosen, search.gallery, min(ranks, len(split) - 1)).cpu().numpy()
    images = [split.images[np.r_[row, found]] for row, found in zip(rows, top, strict=True)]
    return images, [split.class_names[split.labels[row]][:32] for row in rows]


def held_out(training: Training) -> pd.DataFrame:
    """Return natural retrieval scores on the held-out training classes, or on those that are watched, one row."""
    data = training.data
    name = "held-out classes" if data.held_out else "training classes"
    return natural_scores(Search.over(training.model, data.validation)).to_frame(name).T
