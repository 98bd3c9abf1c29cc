"""The pipeline: what the notebooks call, where its files lie, and what each stage depends on."""
