"""Datasets: sources of raw images, preparation, splits, batches to train on."""
