"""Checks of settings: each raises one sentence that names the value and what would be right."""

import difflib
from collections.abc import Iterable


def at_least(name: str, value: float, least: float) -> None:
    """Raises ValueError if a number is too small."""
    if not value >= least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")


def linf_radius(name: str, value: float) -> None:
    """Raises ValueError if a number is no radius of an l-inf ball in [0, 1]."""
    at_least(name, value, 0)
    if value > 1:
        raise ValueError(f"{name} is {value}; pixels lie in [0, 1], so it must be at most 1: perhaps {value:g}/255")


def known(what: str, word: object, words: Iterable[object]) -> None:
    """Raises ValueError if a word is none of the known ones; the sentence suggests the closest."""
    choices = sorted(map(str, words))
    if str(word) not in choices:
        close = difflib.get_close_matches(str(word), choices, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(choices) or 'none'}"
        raise ValueError(f"{what} {word!r} is unknown; {hint}")
