"""Ways to train by name. A new defence is one file and one line here."""

DEFENSES: dict[str, str] = {
    "standard": "dml.defenses.standard:Standard",  # no defence
    "robust": "dml.defenses.robust:Robust",  # the paper's: one element of each tuple (Panum et al. 2021)
    "single_step": "dml.defenses.single_step:SingleStep",  # VisualPhishNet (Abdelnabi et al. 2020)
    "visual_phish_net": "dml.defenses.visual_phish_net:VisualPhishNet",  # the same, as its published code has it
    "joint": "dml.defenses.joint:Joint",  # min-max on the batch loss, as for classifiers (Madry et al. 2018)
    "amd": "dml.defenses.amd:AMD",  # min-max, every slot of a tuple by itself (Zhou and Patel 2022)
    "est": "dml.defenses.est:EST",  # embedding shift (Zhou et al. 2020)
    "act": "dml.defenses.act:ACT",  # anti-collapse triplet (Zhou et al. 2021)
    "hardness": "dml.defenses.hardness:Hardness",  # HM, with LGA and ICS (Zhou and Patel 2022)
    "ca_tride": "dml.defenses.ca_tride:CATRIDE",  # collapse-aware decoupling (Tian et al. 2024)
    "trades": "dml.defenses.trades:Trades",  # after TRADES (Zhang et al. 2019)
    "fare": "dml.defenses.fare:FARE",  # after FARE (Schlarmann et al. 2024)
    "distilled": "dml.defenses.distilled:Distilled",  # after robust distillation (Goldblum et al. 2020)
    "nearest": "dml.defenses.nearest:Nearest",  # this project's: perturbed queries against the whole batch
}
