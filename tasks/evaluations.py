"""Evaluations as files of the run."""

from __future__ import annotations

import json
from pathlib import Path

from crafter_pipeline.evaluation import Evaluation
from crafter_pipeline.runs import write_whole


def keep_evaluation(evaluation: Evaluation, folder: Path) -> Path:
    """Write `evaluations/<label>.json` in a run folder."""
    return write_whole(folder / "evaluations" / f"{evaluation.label}.json", json.dumps(evaluation.to_json(), indent=1))
