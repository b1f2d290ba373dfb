"""Reinforcement learning: `python -m train_app.workers.rl`."""
