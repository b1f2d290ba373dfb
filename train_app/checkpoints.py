"""Which checkpoints of a job are whole; read without torch."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MARKER = "COMPLETE"
"""Written last into a checkpoint's folder: a kill may leave half of one."""
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint: a job that is started again goes on from the newest."""

    step: int
    """Optimiser steps done."""
    path: Path
    created_at: float
    """Unix seconds."""
    bytes: int


def checkpoints_folder(job_folder: Path) -> Path:
    """Where a job's worker writes them."""
    return job_folder / "checkpoints"


def whole_checkpoints(folder: Path) -> Sequence[Checkpoint]:
    """The whole checkpoints below `folder`, oldest first; those that vanish meanwhile are left out."""
    found = []
    for path in folder.glob("checkpoint-*"):
        name = _NAME.fullmatch(path.name)
        try:
            if name is not None:
                created_at = (path / MARKER).stat().st_mtime
                size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                found.append(Checkpoint(int(name[1]), path, created_at, size))
        except FileNotFoundError:
            continue
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def remove_half_written(folder: Path) -> None:
    """Remove the checkpoints below `folder` that are not whole; call it when nobody writes there."""
    for path in folder.glob("checkpoint-*"):
        if not (path / MARKER).exists():
            shutil.rmtree(path, ignore_errors=True)
