"""Entries of a leaderboard with chosen numbers."""

from typing import Any

from dml.api.leaderboard.entry import Entry, validated
from dml.evaluation.statistics import wilson


def values(name: str = "mine", **changes: Any) -> dict[str, Any]:
    """What the JSON of an entry holds: ten queries, ``right`` (8) right at first, of which ``kept`` (4) survive."""
    right, kept = changes.pop("right", 8), changes.pop("kept", 4)

    def scores(count: int) -> dict[str, Any]:
        low, high = wilson(count, 10)
        return {
            "r1": {"value": count / 10, "low": low, "high": high},
            "map_r": {"value": 0.2, "low": 0.1, "high": 0.3},
        }

    common = {
        "name": name,
        "authors": "A. Author",
        "link": "https://example.org/mine",
        "training_data": "shapes",
        "architecture": "linear",
        "control": False,
        "dataset": "shapes",
        "norm": "linf",
        "eps": 8 / 255,
        "suite": "quick",
        "similarity": "cosine",
        "seed": 0,
        "queries": 10,
        "gallery": 20,
        "classes": 5,
        "shape": [4, 4],
        "natural": scores(right),
        "worst_case": scores(kept),
        "survived": "1" * kept + "0" * (10 - kept),
        "gates": {"run": 9, "failed": []},
        "weights_sha256": "a" * 64,
        "images_sha256": "b" * 64,
        "versions": {"dml": "0.2.0"},
    }
    return common | changes


def made(name: str = "mine", **changes: Any) -> Entry:
    """An entry of :func:`values`."""
    return validated(values(name, **changes), "made.json")
