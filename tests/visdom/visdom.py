"""An empty stand-in; see pyproject.toml beside it."""
