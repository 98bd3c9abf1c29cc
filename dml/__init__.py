"""Adversarially robust image retrieval: losses, attacks, robust training and its evaluation.

import dml

result = dml.evaluate(embed, images, labels, eps=8 / 255)
print(result)
result.save("report/")
perturbed = dml.perturb(embed, batch, labels, eps=8 / 255)  # in a training loop of your own
embeddings, names = dml.embed(embed, images, labels)  # for other scores
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dml.api.embed import embed
    from dml.api.evaluate import evaluate
    from dml.api.perturb import perturb
    from dml.api.wrap import load, wrap

__version__ = "0.2.0"
__all__ = ["embed", "evaluate", "load", "perturb", "wrap"]

_HOMES = {
    "embed": "dml.api.embed",
    "evaluate": "dml.api.evaluate",
    "load": "dml.api.wrap",
    "perturb": "dml.api.perturb",
    "wrap": "dml.api.wrap",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for at first use, so that `import dml` waits for no library."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dml' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
