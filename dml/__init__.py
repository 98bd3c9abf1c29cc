"""Adversarially robust image retrieval: losses, attacks, robust training and its evaluation."""

__version__ = "0.2.0"
