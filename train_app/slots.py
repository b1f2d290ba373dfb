"""What jobs run on: a slot each. A machine without a GPU has one, a machine with GPUs one per GPU."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

GPU_QUERY = ("nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader")
QUERY_SECONDS = 10.0
SLOTS_VARIABLE = "TRAIN_APP_SLOTS"
"""Tells a worker how many slots share the machine's cores (`workers.devices.cpu_cores`)."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Room for one worker process."""

    index: int
    gpu: str | None
    """As CUDA_VISIBLE_DEVICES names it; None: no GPU."""


class SlotPool:
    """Which slots are free. Several threads may ask."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.count, self.gpus = len(slots), len({slot.gpu for slot in slots} - {None})
        self._free, self._lock = list(slots), threading.Lock()

    def fits(self, count: int) -> bool:
        """Whether a job of so many GPUs can ever run here. One slot does without."""
        return count <= max(1, self.gpus)

    def take(self, count: int) -> tuple[Slot, ...] | None:
        """That many slots, each with a GPU of its own where there are GPUs; None while there are not enough."""
        with self._lock:
            by_gpu: dict[str | None, Slot] = {}
            for slot in self._free:
                by_gpu.setdefault(slot.gpu, slot)
            taken = tuple(by_gpu.values())[:count]
            if len(taken) < count:
                return None
            self._free = [slot for slot in self._free if slot not in taken]
            return taken

    def give_back(self, slots: Iterable[Slot]) -> None:
        """They are free again."""
        with self._lock:
            self._free = sorted((*self._free, *slots), key=lambda slot: slot.index)


def find_slots(count: int | None = None) -> list[Slot]:
    """The slots of this machine, found without torch.

    Args:
        count: How many; GPUs are shared where there are fewer of them. None: one per GPU, or one.
    """
    gpus = visible_gpus()
    count = count or len(gpus) or 1
    return [Slot(i, gpus[i % len(gpus)] if gpus else None) for i in range(count)]


def machine_cores() -> int:
    """Those of the process's affinity, within its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def visible_gpus() -> list[str]:
    """NVIDIA GPUs by index, those of CUDA_VISIBLE_DEVICES where it is set; none when no driver answers."""
    try:
        answer = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=QUERY_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    there = [tuple(word.strip() for word in line.split(",")) for line in answer.splitlines() if "," in line]
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is None:
        return [index for index, _ in there]
    names = {name for gpu in there for name in gpu}
    return [word for word in (w.strip() for w in asked.split(",")) if word in names or word.startswith("MIG-")]


def job_environment(slots: Sequence[Slot], count: int) -> dict[str, str]:
    """Variables of a worker that runs on these slots of `count`."""
    shared = {SLOTS_VARIABLE: str(count)}
    gpus = [slot.gpu for slot in slots if slot.gpu is not None]
    return shared | {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else shared
