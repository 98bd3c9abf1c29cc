"""Settings to the raw images of a dataset."""

from dml.common.arguments import arguments, record
from dml.common.files import ROOT
from dml.common.table import find
from dml.config.schema import Data
from dml.data.base import Source
from dml.data.sources import SOURCES


def source(data: Data) -> Source:
    """Open the raw images of a dataset.

    Raises:
        DatasetError: they are missing or damaged.
    """
    return record(find(SOURCES, data.source, "data.source"), data.options, "data.options", ROOT / data.path)


def check_source(data: Data, where: str) -> None:
    """Raise ValueError if the source is unknown or an option wrong, without reading anything."""
    arguments(find(SOURCES, data.source, f"{where}.source"), data.options, f"{where}.options", given=1)
