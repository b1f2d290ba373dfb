"""The worker that trains `crafter-mlp`; the only one that imports scikit-learn, and without torch."""
