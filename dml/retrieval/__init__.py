"""Exact retrieval: galleries and queries, the search of a model, and what decides whether a query survives."""
