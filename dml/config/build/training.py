"""Settings to losses and defences."""

from dml.common.arguments import record
from dml.common.table import find
from dml.config.schema import Settings
from dml.defenses import DEFENSES
from dml.defenses.base import Defense
from dml.losses import LOSSES
from dml.losses.base import Loss


def loss(name: str, settings: Settings, *, classes: int, dimension: int, where: str = "loss") -> Loss:
    """Return a loss for embeddings (B, dimension) with labels 0 to classes - 1.

    It is the one of that name, or the one that the settings call ``loss``, so that two may differ.
    """
    others = {key: value for key, value in settings.items() if key != "loss"}
    return record(find(LOSSES, settings.get("loss", name), where), others, where, classes, dimension)


def defense(name: str, settings: Settings, where: str = "defense") -> Defense:
    """Return a defence: the one of that name, or the one that the settings call ``defense``, so that two may differ."""
    others = {key: value for key, value in settings.items() if key != "defense"}
    return record(find(DEFENSES, settings.get("defense", name), where), others, where)
