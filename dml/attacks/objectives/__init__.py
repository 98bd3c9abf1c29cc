"""Objectives: functions images (B, 3, H, W) -> (B,) that an attack maximises; higher is worse for the defender.

An objective closes over the model, the gallery and the queries. It chooses gallery items anew at every call and over
the whole gallery, unless its docstring says otherwise. Each value depends on its own image alone.
"""
