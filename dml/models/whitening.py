"""The initial head of a pretrained model: a whitening of the backbone's features of the training images."""

import torch

from dml.data.base import Split
from dml.data.sampling import evenly
from dml.data.transforms import to_float
from dml.models.embedder import Embedder, device_of, evaluating

IMAGES = 5_000  # at most, evenly spaced
CHUNK = 256  # images at a time
FLOOR = 1e-3  # added to each variance, as a share of the largest, so that flat directions are not blown up


@torch.no_grad()
def whiten(model: Embedder, split: Split) -> Embedder:
    """Set the model's head to the PCA whitening of its backbone's features, and return the model.

    The features of a pretrained network vary in few directions, so that a random head puts all images close together.
    Jegou and Chum (2012) whiten features for retrieval; Gordo et al. (2017) initialise the head so.

    Raises:
        ValueError: the embedding is longer than the features.
    """
    dimension, width = model.head.weight.shape
    if dimension > width:
        raise ValueError(f"dimension is {dimension}; to whiten the {width} features it must be at most {width}")
    rows = evenly(IMAGES, len(split))
    with evaluating(model):
        found = [
            model.features(to_float(split.images[rows[first : first + CHUNK]], device_of(model))).double().cpu()
            for first in range(0, len(rows), CHUNK)
        ]
    features = torch.cat(found)
    mean = features.mean(0)
    variances, directions = torch.linalg.eigh(torch.cov((features - mean).T))  # ascending
    largest, directions = variances.flip(0)[:dimension], directions.flip(1)[:, :dimension]
    weight = (directions / (largest + FLOOR * largest[0]).sqrt()).T
    model.head.weight.copy_(weight)
    model.head.bias.copy_(-weight @ mean)
    return model
