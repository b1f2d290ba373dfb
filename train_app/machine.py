"""What a machine has to train on, asked without torch."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import psutil

Run = Callable[[list[str]], str]


@dataclass(frozen=True, slots=True)
class Machine:
    """The device that a job would take."""

    device: str
    """cpu, mps or cuda."""
    name: str
    memory_bytes: int
    """Of the device; of the smallest where there are several."""
    free_bytes: int
    flops: float
    """Multiplications and additions per second that training reaches on it, about."""
    cores: int
    bf16: bool = False

    @property
    def step_seconds(self) -> float:
        """Of a training step beside its arithmetic."""
        return 0.02 if self.device == "cpu" else 0.05


_CUDA_FLOPS = {"H200": 300e12, "H100": 300e12, "A100": 120e12, "L40": 90e12, "4090": 70e12, "A10": 40e12, "T4": 15e12}
"""By a part of the GPU's name: two fifths of the data sheet's dense bf16 number (T4: fp16)."""
_OTHER_CUDA_FLOPS, _MPS_FLOPS, _CORE_FLOPS = 30e12, 2e12, 25e9
"""A core's was measured: 26 GFLOP/s of a 1 M model, 33 of one with 5 M, fp32 with AVX-512."""
_NO_BF16 = ("T4", "V100", "P100", "GTX", "RTX 20")


def find_machine(device: str = "auto", run: Run | None = None) -> Machine:
    """The device that `device` means here. One that is not there is planned as a CPU; the worker refuses it."""
    gpus = _gpus(run or _run) if device in ("auto", "cuda") else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory()
    if gpus:
        name, total, free = min(gpus, key=lambda gpu: gpu[2])
        flops = next((f for part, f in _CUDA_FLOPS.items() if part in name), _OTHER_CUDA_FLOPS)
        return Machine("cuda", name, total, free, flops, cores, bf16=not any(part in name for part in _NO_BF16))
    if device in ("auto", "mps") and platform.system() == "Darwin" and platform.machine() == "arm64":
        # Metal gives a process three quarters of the memory that everybody shares.
        return Machine("mps", "Apple GPU", memory.total * 3 // 4, memory.available * 3 // 4, _MPS_FLOPS, cores, True)
    return Machine("cpu", "CPU", memory.total, memory.available, cores * _CORE_FLOPS, cores)


def _gpus(run: Run) -> list[tuple[str, int, int]]:
    """(name, bytes, free bytes) of each."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        lines = run(query).splitlines()
        rows = [[cell.strip() for cell in line.split(",")] for line in lines if line.count(",") == 2]
        return [(name, int(total) << 20, int(free) << 20) for name, total, free in rows]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
