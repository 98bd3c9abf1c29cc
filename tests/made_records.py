"""Records that tests make up."""

from typing import Any

from dml.config.run import Figures
from dml.evaluation.statistics import wilson

EPS = 8 / 255
FIGURES = Figures(
    eps=EPS, paper_eps=0.01, suite="quick", loss="triplet", baseline="standard", paper="robust", peer="single_step"
)
GATE = {"gate": "broken by random noise", "eps": EPS, "measured": 0.0, "limit": 0.1, "passed": True}


def row(attack: str, eps: float, survive: int, queries: int = 400, norm: str = "linf", map_r: float = 0.1) -> dict:
    low, high = wilson(survive, queries)
    share = survive / queries
    return {
        "attack": attack,
        "norm": norm,
        "eps": eps,
        "queries": queries,
        "r1": share,
        "r1_low": low,
        "r1_high": high,
        "map_r": map_r,
    }


def record(
    loss: str, defense: str, natural: float, survive: int, suite: str = "quick", queries: int = 400, **changes: Any
) -> dict[str, Any]:
    """A run of a suite that attacks at 8/255."""
    return {
        "dataset": "toys",
        "loss": loss,
        "defense": defense,
        "seed": 0,
        "suite": suite,
        "digests": {"training": f"{loss} {defense}", "evaluation": suite},
        "natural": {"queries": 1000, "r1": natural, "map_r": 0.55},
        "embedding": {
            "effective_rank": 12.25,
            "directions": 99.0,
            "top_share": 0.2,
            "intra": 0.5,
            "inter": 1.25,
            "ratio": 0.4,
        },
        "rows": [
            row("none", 0.0, round(natural * queries), queries, map_r=0.5),
            row("worst", EPS, survive, queries),
        ],
        "scores": {},
        "gates": [GATE],
        "survival": {"0.031373": "1" * survive + "0" * (queries - survive)},
        "claims": True,
        "alone": False,
        "embedded": None if loss == "none" else 1000 if defense == "standard" else 5000,
        "settings": {"data": {"size": 32}, "suite": {"kind": "attacks", "eps": [EPS]}},
        "machine": {"device": "CPU", "versions": {}, "seconds": {"training": 60.0, "suite": 2.0}},
    } | changes


def six() -> list[dict[str, Any]]:
    """Two losses under three defences."""
    return [
        record("triplet", "standard", 0.9, 20),
        record("triplet", "robust", 0.88, 200),
        record("triplet", "single_step", 0.89, 80),
        record("contrastive", "standard", 0.9, 0),
        record("contrastive", "robust", 0.8, 100),
        record("contrastive", "single_step", 0.89, 98),
    ]
