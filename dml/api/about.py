"""What was evaluated: the facts that a report shows, and a key of all that decides its numbers."""

import hashlib
import inspect
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dml
from dml.api.checks import LOOKED_AT, along, signs_like
from dml.api.similarity import SimilaritySearch
from dml.common.randomness import torch_generator
from dml.data.base import Split
from dml.data.sampling import evenly
from dml.evaluation.suites.base import Suite

CODE = (
    "api",
    "attacks",
    "common",
    "data",
    "evaluation",
    "losses",
    "models",
    "retrieval",
)  # they decide what an attack finds
OWN = "own settings"  # name of a suite that is none of params.yaml
AT_ONCE = 100  # images digested at a time
NEAR = 4 / 255  # how far from the images a model's behaviour is looked at


def about(
    search: SimilaritySearch,
    suite: Suite,
    rows: np.ndarray,
    ranks: Sequence[int],
    seed: int,
    similarity: str,
    norm: str,
    name: str | Mapping[str, Any],
    has_gradient: bool,
) -> dict[str, Any]:
    """Return what was evaluated, and ``key``: of images, settings, code, and the model's outputs and gradients.

    Args:
        search: of the model.
        suite: as it runs.
        rows: numbers of the attacked queries.
        ranks, seed, similarity, norm: of the evaluation.
        name: of the suite, or its settings.
        has_gradient: whether the model gives any.
    """
    settings = {"kind": type(suite).__name__, **vars(suite)}
    settings.pop("named", None)
    found = {
        "suite": name if isinstance(name, str) else OWN,
        "settings": settings,
        "similarity": similarity,
        "norm": norm,
        "ranks": list(ranks),
        "seed": seed,
        "gradients": has_gradient,
        "queries": len(rows),
        "all_queries": len(search),
        "apart": search.apart,
        "gallery": len(search.split),
        "classes": len(search.split.classes),
        "shape": list(search.split.images.shape[1:3]),
        "grouped": search.split.groups is not None,
        "images_sha256": images_sha256(search.query_split, rows),
        "gallery_sha256": gallery_sha256(search.split),
        "embeddings_sha256": hashlib.sha256(search.gallery.embeddings.cpu().contiguous().numpy()).hexdigest(),
        "device": str(search.gallery.labels.device),
        "versions": {
            "python": platform.python_version(),
            **{item: version(item) for item in ("dml", "torch", "numpy")},
        },
    }
    asked = search.query_split
    decides = [found, rows.tolist(), asked.labels.tolist(), None if asked.groups is None else asked.groups.tolist()]
    decides += [code_sha256(), sources(suite), behaviour(search, has_gradient)]
    return found | {"key": hashlib.sha256(json.dumps(decides, default=str).encode()).hexdigest()[:16]}


def sources(suite: Suite) -> list[str]:
    """Return the code of a suite's attacks, one's own among them, where Python can find it."""
    found = []
    for item in getattr(suite, "named", {}).values():
        try:
            found.append(inspect.getsource(inspect.getmodule(type(item))))
        except (OSError, TypeError):  # typed into a notebook or a console
            found.append(type(item).__qualname__)
    return found


def images_sha256(asked: Split, rows: np.ndarray) -> str:
    """Return the digest of some queries' pixels, as they are held (see :mod:`dml.api.pixels`), in order."""
    total = hashlib.sha256()
    for first in range(0, len(rows), AT_ONCE):
        total.update(np.ascontiguousarray(asked.images[rows[first : first + AT_ONCE]]).tobytes())
    return total.hexdigest()


def gallery_sha256(split: Split) -> str:
    """Return the digest of a gallery: its pixels, labels and groups, in order."""
    total = hashlib.sha256(images_sha256(split, np.arange(len(split))).encode() + split.labels.tobytes())
    total.update(b"" if split.groups is None else split.groups.tobytes())
    return total.hexdigest()


def behaviour(search: SimilaritySearch, has_gradient: bool) -> list[str]:
    """Return what a model does near a few images, to two digits: models of equal embeddings may differ in that.

    Raises:
        ValueError: it gives no gradients here, though it did for other images.
    """
    images = search.images(evenly(LOOKED_AT, len(search)))
    signs = signs_like(images, torch_generator(0, "a direction of images"))
    nearby = (images + NEAR * signs).clamp(0, 1).requires_grad_(has_gradient)
    with torch.set_grad_enabled(has_gradient):
        values = along(search.model(nearby))
    found = values.tolist()
    if has_gradient:
        if not values.requires_grad:
            raise ValueError("embed gave gradients for the first images, but gives none for others")
        (gradient,) = torch.autograd.grad(values, nearby, torch.ones_like(values))
        found += gradient.flatten(1).norm(dim=1).tolist() + (gradient * signs).flatten(1).sum(1).tolist()
    return [f"{value:.1e}" for value in found]  # on a GPU further digits change


def code_sha256() -> str:
    """Return the digest of the code that decides what an attack finds."""
    home = Path(dml.__file__).parent
    files = sorted(file for package in CODE for file in (home / package).rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
