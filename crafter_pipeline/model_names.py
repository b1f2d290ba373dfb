"""Names that mean a trained model: its full id, its job's id, `ft:<job>`, `latest:sft`, `latest:rl`, `champion`."""

from __future__ import annotations

import re

CHAMPION = "champion"
"""The name that moves from model to model."""

_TRAINED = re.compile(rf"(?:fft|ft|qft|rl|latest):.+|{CHAMPION}|job_\w+")


def is_trained(name: str) -> bool:
    """Whether a name means a model that was trained, and not a base or a built-in one."""
    return _TRAINED.fullmatch(name) is not None
