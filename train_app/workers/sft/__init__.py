"""Supervised fine-tuning: `python -m train_app.workers.sft`."""
