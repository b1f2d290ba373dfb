"""The processes that import torch: one worker per training job, one child that serves models."""

import logging
import os

# Before torch loads its threads: waiting threads sleep instead of spinning. On two shared cores a spinning neighbour
# slowed training down by a factor of ten.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Models are never downloaded. Before huggingface_hub is imported: it looks once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# On some CPUs bitsandbytes looks for a faster kernel on the hub when it is imported. It is not
# missed: it multiplies by weights that are packed for inference, and ours never are.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in str(record.msg))
