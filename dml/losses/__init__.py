"""Metric losses by name. A new loss is one file and one line here."""

LOSSES: dict[str, str] = {
    "contrastive": "dml.losses.contrastive:Contrastive",
    "triplet": "dml.losses.triplet:Triplet",
    "pml": "dml.losses.pml:PML",
}
