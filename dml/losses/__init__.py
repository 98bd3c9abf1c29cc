"""Metric losses by name. A new loss is one file and one line here."""

LOSSES: dict[str, str] = {
    "contrastive": "dml.losses.contrastive:Contrastive",
    "triplet": "dml.losses.triplet:Triplet",
    "margin": "dml.losses.margin:Margin",
    "multi_similarity": "dml.losses.multi_similarity:MultiSimilarity",
    "proxy_anchor": "dml.losses.proxy_anchor:ProxyAnchor",
    "normalized_softmax": "dml.losses.normalized_softmax:NormalizedSoftmax",
    "pml": "dml.losses.pml:PML",
}
