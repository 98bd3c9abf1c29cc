"""Imports that can wait."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def put_off(name: str) -> Iterator[None]:
    """Let ``import name`` find an empty module for a block, unless the module was imported before.

    For a library that imports at its start what it uses later if at all, by its full name: a parent package that
    imports its parts when they are used, such as scipy, imports it then.

    Args:
        name: of a module inside a package, such as ``scipy.stats``.
    """
    empty = ModuleType(name)
    before = sys.modules.setdefault(name, empty)
    try:
        yield
    finally:
        if before is empty:
            del sys.modules[name]
