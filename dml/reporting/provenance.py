"""What made the results: versions of the libraries, and device and seconds of each run."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from dml.reporting.records import KEYS, Record

LIBRARIES = ("torch", "torchvision", "numpy", "pandas", "matplotlib", "papermill", "dvc")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def provenance(records: Sequence[Record]) -> dict[str, Any]:
    """Return the content of provenance.json.

    Args:
        records: current ones, as :func:`dml.reporting.records.read` returns them.

    Returns:
        ``versions`` that drew the figures, and ``runs``: what each record is about, its digests and its machine.
    """
    told = (*KEYS, "digests", "weights")
    runs = [{**{key: record[key] for key in told if key in record}, **record.get("machine", {})} for record in records]
    return {"versions": versions(), "runs": runs}
