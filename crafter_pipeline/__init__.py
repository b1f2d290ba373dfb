"""crafter-pipeline's core: plain Python, no Prefect, no FastAPI, no torch."""

__version__ = "0.1.0"
