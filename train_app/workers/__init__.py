"""The processes that import torch: one worker per training job, one child that serves models."""

import os

# Before torch loads its threads: waiting threads sleep instead of spinning. On two shared cores a spinning neighbour
# slowed training down by a factor of ten.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
