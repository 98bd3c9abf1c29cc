"""Embedding models: backbones, the head on top of them, and their weights."""
