"""Attack any retrieval model: `dml.evaluate`, `dml.wrap`, `dml.load`, and `python -m dml evaluate`."""
