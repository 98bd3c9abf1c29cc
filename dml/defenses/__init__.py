"""Ways to train by name. A new defence is one file and one line here."""

DEFENSES: dict[str, str] = {
    "standard": "dml.defenses.standard:Standard",
    "robust": "dml.defenses.robust:Robust",
    "single_step": "dml.defenses.single_step:SingleStep",
    "est": "dml.defenses.est:EST",
    "act": "dml.defenses.act:ACT",
    "hardness": "dml.defenses.hardness:Hardness",
    "ca_tride": "dml.defenses.ca_tride:CATRIDE",
    "joint": "dml.defenses.joint:Joint",
    "trades": "dml.defenses.trades:Trades",
    "fare": "dml.defenses.fare:FARE",
    "nearest": "dml.defenses.nearest:Nearest",
}
