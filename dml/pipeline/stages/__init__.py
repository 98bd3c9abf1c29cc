"""What the notebooks call: one file per chapter. Their imports decide what a stage of the pipeline depends on."""
