"""What a model's name says of it: trained (a full id, a job's id, `ft:<job>`, `latest:sft`, `latest:rl`, `champion`),
built in, tiny, the baseline."""

from __future__ import annotations

import re

from crafter_pipeline.errors import ConfigError

CHAMPION = "champion"
"""The name that moves from model to model."""

TINY = "crafter-tiny"
"""The student that is made here; the name of every model that was trained from it contains this."""
_STUDENT = re.compile(rf"{TINY}(?:-(\d+)x(\d+))?")
_USUAL_SIZE = (96, 2)
MLP = "crafter-mlp"
"""The baseline: a small network without a language, trained like a student."""
BUILTIN = re.compile(r"[a-z]+-(expert|random|weak)")
"""Scripted players, which the training backend serves without training."""
_MLP = re.compile(rf"(?:fft:)?{MLP}(?::.+)?")
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


def is_student(name: str) -> bool:
    """Whether the name says that a student of ours plays, the tiny one or the baseline."""
    return is_tiny(name) or is_mlp(name)


def student_size(name: str) -> tuple[int, int] | None:
    """(hidden units, layers) of a student that is made here, untrained: `crafter-tiny`, or another size as in
    `crafter-tiny-128x3`; None: no such name. ConfigError for a size that is not made: hidden units go by 32, up to 512;
    layers up to 12."""
    found = _STUDENT.fullmatch(name)
    if found is None:
        return None
    hidden, layers = (int(found[1]), int(found[2])) if found[1] else _USUAL_SIZE
    if hidden not in range(32, 513, 32) or layers not in range(1, 13):
        raise ConfigError(f"{name}: hidden units are 32, 64, … 512 and layers 1 to 12, as in {TINY}-128x3.")
    return hidden, layers


def is_mlp(name: str) -> bool:
    """Whether the name says that the baseline network plays, trained or to be trained."""
    return _MLP.fullmatch(name) is not None
