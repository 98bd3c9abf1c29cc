"""Attacks: balls (how far), objectives (towards what), optimisers (how), and named attacks on queries.

A new attack is one file with a subclass of :class:`dml.attacks.base.Attack`, and one line here.
"""

ATTACKS: dict[str, str] = {
    "margin": "dml.attacks.queries.margin:Margin",
    "targeted": "dml.attacks.queries.targeted:Targeted",
    "soft_margin": "dml.attacks.queries.soft_margin:SoftMargin",
    "cross_entropy": "dml.attacks.queries.cross_entropy:CrossEntropy",
    "dlr": "dml.attacks.queries.dlr:DLR",
    "map": "dml.attacks.queries.map:MAP",
    "square": "dml.attacks.queries.square:Square",
    "nes": "dml.attacks.queries.nes:NES",
    "noise": "dml.attacks.queries.noise:Noise",
    "fgsm": "dml.attacks.queries.fgsm:FGSM",
    "r_fgsm": "dml.attacks.queries.r_fgsm:RandomFGSM",
    "pgd": "dml.attacks.queries.pgd:PGD",
    "carlini_wagner": "dml.attacks.queries.carlini_wagner:CarliniWagner",
    "margin_pgd": "dml.attacks.queries.margin_pgd:MarginPGD",
    "metric_loss": "dml.attacks.queries.metric_loss:MetricLoss",
    "embedding_shift": "dml.attacks.queries.embedding_shift:EmbeddingShift",
    "peer": "dml.attacks.queries.peer:Peer",
}
