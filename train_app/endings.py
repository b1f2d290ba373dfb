"""Why a worker ended, in words that say what to do."""

from __future__ import annotations

import signal
from pathlib import Path

MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")
"""Of the container, if this is one."""
_MEMORY_REMEDY = (
    "Hold less at once: a smaller micro_batch_size or sequence_length, gradient_checkpointing = true, or fewer --slots."
)
_MEMORY_WORDS = ("out of memory", "OutOfMemoryError", "MemoryError", "can't allocate memory", "Cannot allocate memory")
_DISK_WORDS = ("No space left on device", "Disk quota exceeded", "database or disk is full") + (
    "PytorchStreamWriter failed",  # what torch.save says instead
    "inline_container.cc",
)


def ending(code: int | None) -> str:
    """What a worker did, by its exit code; None: it had to be stopped."""
    if code is None:
        return "stopped answering."
    if code >= 0:
        return f"ended with exit code {code}, without a model."
    try:
        return f"was killed by {signal.Signals(-code).name}."
    except ValueError:
        return f"was killed by signal {-code}."


def known_cause(words: str, folder: Path) -> str:
    """The cause and the remedy, when an exception's text or a log's tail tells of one; else empty."""
    if any(word in words for word in _DISK_WORDS):
        return f"The disk of {folder} is full: make room, or choose another --data folder."
    if any(word in words for word in _MEMORY_WORDS):
        return f"The memory is not enough. {_MEMORY_REMEDY}"
    return ""


def probable_cause(code: int | None, words: str, folder: Path, *, oom_killed: bool = False) -> str:
    """`known_cause`, or what a bare SIGKILL may mean; else empty.

    Args:
        oom_killed: The kernel killed for memory while the worker ran, see `oom_kills`.
    """
    cause = known_cause(words, folder)
    if cause or code != -signal.SIGKILL:
        return cause
    if oom_killed:
        return f"The system was out of memory. {_MEMORY_REMEDY}"
    return f"Somebody sent it this signal, or the system was out of memory. Against the latter: {_MEMORY_REMEDY}"


def oom_kills() -> int:
    """How many processes the kernel has killed here for want of memory, as far as it tells; only a rise says
    something."""
    try:
        counts = dict(line.split() for line in MEMORY_EVENTS.read_text(encoding="ascii").splitlines())
        return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
