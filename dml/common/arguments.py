"""Settings checked against the signature of what they are for."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import pydantic

from dml.common.checks import known


def record(target: Callable[..., Any], settings: Any, where: str, *given: Any) -> Any:
    """Call a constructor with checked settings.

    Args:
        target: class or function; the annotations of its arguments say what a value must be.
        settings: arguments by name.
        where: key of the settings, for messages.
        given: leading arguments that do not come from settings.

    Raises:
        ValueError: a key is unknown or missing, or a value is wrong; the sentence names it.
    """
    converted = arguments(target, settings, where, len(given))
    try:
        return target(*given, **converted)
    except ValueError as error:
        is_key = str(error).split(" ")[0] in inspect.signature(target).parameters
        raise ValueError(f"{where}{'.' if is_key else ': '}{error}") from error


def arguments(target: Callable[..., Any], settings: Any, where: str, given: int = 0) -> dict[str, Any]:
    """Return settings checked and converted by the signature of ``target``, less its first ``given`` arguments.

    A target with ``**settings`` takes further keys as they are.

    Raises:
        ValueError: see :func:`record`.
    """
    signature = list(inspect.signature(target).parameters.values())[given:]
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    names = {item.name for item in signature if item.kind is not inspect.Parameter.VAR_KEYWORD}
    required = {item.name for item in signature if item.name in names and item.default is inspect.Parameter.empty}
    is_open = len(names) < len(signature)
    check_keys(settings, names | set(mapping(settings, where)) if is_open else names, where, required)
    return {
        name: _converted(hints[name], value, f"{where}.{name}") if name in names else value
        for name, value in settings.items()
    }


_adapter = functools.cache(pydantic.TypeAdapter)  # making one takes a hundred times as long as using it


def _converted(hint: Any, value: Any, where: str) -> Any:
    try:
        return _adapter(hint).validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        parts = [part for part in first["loc"] if "[" not in str(part)]  # the branch of a union is no place in settings
        inner = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
        raise ValueError(f"{where}{inner} is {first['input']!r}: {first['msg']}") from error


def mapping(settings: Any, where: str) -> dict:
    """Return settings that are keys and values; ValueError if they are anything else."""
    if not isinstance(settings, dict):
        raise ValueError(f"{where} is {settings!r}; it must hold keys and values")
    return settings


def check_keys(settings: Any, keys: set[str], where: str, required: set[str] | None = None) -> None:
    """Raise ValueError if a key is unknown, or one of those required (all, if None) is missing."""
    if not isinstance(settings, dict):
        raise ValueError(f"{where} is {settings!r}; it must hold the keys {', '.join(sorted(keys))}")
    for key in settings:
        known(f"{where} key", key, keys)
    missing = (keys if required is None else required) - set(settings)
    if missing:
        raise ValueError(f"{where} lacks the key {sorted(missing)[0]!r}")
