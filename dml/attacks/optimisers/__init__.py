"""Optimisers: functions that raise an objective inside a ball. Each knows nothing of models or galleries."""
