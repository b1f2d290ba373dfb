"""The processes that import torch: one worker per training job, one child that serves models."""
