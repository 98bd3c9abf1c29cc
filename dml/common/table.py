"""Classes chosen by name, each imported when it is first asked for."""

import importlib
from collections.abc import Mapping
from typing import Any

from dml.common.checks import known


def find(table: Mapping[str, str], name: str, what: str) -> Any:
    """Return the class or function that a table gives a name.

    Args:
        table: name -> ``"package.module:object"``.
        name: to look up.
        what: the kind of thing, for the error message.

    Raises:
        ValueError: the table has no such name; the sentence suggests the closest one.
    """
    known(what, name, table)
    module, item = table[name].split(":")
    return getattr(importlib.import_module(module), item)
