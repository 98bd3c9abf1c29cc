"""Ways to train by name. A new defence is one file and one line here."""

DEFENSES: dict[str, str] = {
    "standard": "dml.defenses.standard:Standard",
    "robust": "dml.defenses.robust:Robust",
    "single_step": "dml.defenses.single_step:SingleStep",
}
