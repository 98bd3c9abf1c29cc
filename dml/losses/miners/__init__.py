"""Miners by name. A new miner is one file and one line here."""

MINERS: dict[str, str] = {
    "random": "dml.losses.miners.random:random_tuples",
    "semi_hard": "dml.losses.miners.semi_hard:semi_hard",
    "soft_hard": "dml.losses.miners.soft_hard:soft_hard",
    "distance_weighted": "dml.losses.miners.distance_weighted:distance_weighted",
}
