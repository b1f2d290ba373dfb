"""What a model's name says of it: trained (a full id, a job's id, `ft:<job>`, `latest:sft`, `latest:rl`, `champion`),
built in, tiny."""

from __future__ import annotations

import re

CHAMPION = "champion"
"""The name that moves from model to model."""

TINY = "crafter-tiny"
"""The student that is made here; the name of every model that was trained from it contains this."""
BUILTIN = re.compile(r"[a-z]+-(expert|random)")
"""Scripted players, which the training backend serves without training."""
_TRAINED = re.compile(rf"(?:fft|ft|qft|rl|latest):.+|{CHAMPION}|job_\w+")


def is_trained(name: str) -> bool:
    """Whether a name means a model that was trained, and not a base or a built-in one."""
    return _TRAINED.fullmatch(name) is not None


def is_builtin(name: str) -> bool:
    """Whether the backend serves it without training: crafter-expert, math-random, …"""
    return BUILTIN.fullmatch(name) is not None


def is_tiny(name: str) -> bool:
    """Whether the name says that the tiny student plays, which reads and answers in a form of its own."""
    return TINY in name
