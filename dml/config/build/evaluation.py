"""Settings to suites and controls."""

from torch import nn

from dml.common.arguments import mapping, record
from dml.common.table import find
from dml.config.schema import Settings
from dml.evaluation import CONTROLS
from dml.evaluation.suites import SUITES
from dml.evaluation.suites.base import Suite


def suite(settings: Settings, where: str = "suite") -> Suite:
    """Return an evaluation suite; ``kind`` of its settings is a key of ``SUITES``.

    Raises:
        ValueError: the kind is missing or unknown, or a setting is wrong.
    """
    if "kind" not in mapping(settings, where):
        raise ValueError(f"{where} lacks the key 'kind'")
    others = {key: value for key, value in settings.items() if key != "kind"}
    return record(find(SUITES, settings["kind"], f"{where}.kind"), others, where)


def control(name: str) -> nn.Module:
    """Return an untrained embedder, images (B, 3, H, W) in [0, 1] -> embeddings (B, D)."""
    return find(CONTROLS, name, "control")().eval()
