"""Sampling and serving: `python -m train_app.workers.inference`."""
