"""Experiment trackers beside our own job table: transformers' integrations, checked before anything is trained."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crafter_pipeline.errors import ConfigError

_PACKAGES = {"trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboard"}
PROJECT = "crafter-pipeline"


def tracker_arguments(report_to: Sequence[str], run_name: str, folder: Path) -> dict[str, Any]:
    """The trainer's arguments for the asked-for trackers.

    Args:
        run_name: The job's id.
        folder: Takes what a tracker writes here.

    Raises:
        ConfigError: one of them is not installed.
    """
    for name in report_to:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigError(f"report_to: {name} is not installed beside the backend. Run: pip install {name}")
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    if "WANDB_API_KEY" not in os.environ:
        os.environ.setdefault("WANDB_MODE", "offline")  # a worker has nobody to ask for a key
    os.environ.setdefault("WANDB_DIR", str(folder))
    return {"report_to": list(report_to), "run_name": run_name, "project": PROJECT}
