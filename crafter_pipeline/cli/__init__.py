"""`crafter-pipeline …`: the top layer. Commands are in `app.py`; each imports what it needs when it runs."""

from crafter_pipeline.cli.app import main

__all__ = ["main"]
