"""Where a model runs, in which numbers, with how many threads: one probe, set explicitly and told with its reason.

hardware = probe(config.device, config.dtype, parameters=n)     # or settled(folder, …): the same in each attempt
job.event("job.device", hardware.why, **hardware.facts())
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from transformers.utils import is_flash_attn_2_available

from crafter_pipeline.errors import ConfigError
from crafter_pipeline.files import write_whole
from train_app.slots import SLOTS_VARIABLE, machine_cores

Role = Literal["trainer", "trainer beside its sampler", "inference"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MAX_TRAINER_THREADS, MAX_INFERENCE_THREADS = 16, 4
SMALL_MODEL = 50_000_000
"""Parameters below which bf16 gains nothing on a CPU: such a model's step consists of overhead, not of matrices."""
WORTHWHILE = 1.2
"""bf16 must be faster than fp32 by this factor on a CPU; its rounding is a price."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a model is loaded on."""

    device: torch.device
    dtype: torch.dtype
    """Of matrix products. Weights that are trained stay fp32 (autocast); frozen and served ones are held in it."""
    attention: str
    """transformers' `attn_implementation`; a model that lacks it takes eager."""
    threads: int
    """CPU threads of a trainer here."""
    memory_bytes: int
    """Free on the device."""
    why: str
    """The choice in a sentence, with its reason."""

    @property
    def bf16(self) -> bool:
        """Whether matrix products are bf16."""
        return self.dtype is torch.bfloat16

    def facts(self) -> dict[str, Any]:
        """For the event `job.device` and a model's record."""
        return {
            "device": str(self.device),
            "dtype": "bf16" if self.bf16 else "fp32",
            "attention": self.attention,
            "threads": self.threads,
            "memory_bytes": self.memory_bytes,
        }


def probe(device: str = "auto", dtype: str = "auto", *, parameters: int | None = None) -> Hardware:
    """Choose device, dtype and attention.

    Args:
        device: auto (cuda, else mps, else cpu), or one of these.
        dtype: auto (bf16 where the hardware computes it), fp32 or bf16.
        parameters: Of the model; auto takes fp32 on a CPU for a small one, and for one of unknown size.

    Raises:
        ConfigError: what was asked for is not there.
    """
    kind = _device(device)
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
    numbers, reason = _dtype(place, dtype, parameters)
    attention = "sdpa"
    if kind == "cuda" and numbers is torch.bfloat16 and is_flash_attn_2_available():
        attention = "flash_attention_2"
    threads = threads_for("trainer")
    why = f"{_name(place)}, {'bf16' if numbers is torch.bfloat16 else 'fp32'} ({reason}), {attention} attention"
    if kind == "cpu":
        why += f", {threads} threads"
    return Hardware(place, numbers, attention, threads, free_memory(place), why)


def settled(folder: Path, device: str = "auto", dtype: str = "auto", *, parameters: int | None = None) -> Hardware:
    """`probe`, whose choice is kept in `folder/hardware.json`: a probe measures, and a job that goes on after a kill
    must go on in the same numbers. A machine that no longer has them is refused by the ConfigError of `probe`."""
    file = folder / "hardware.json"
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        return probe(kept["device"], kept["dtype"], parameters=parameters)
    hardware = probe(device, dtype, parameters=parameters)
    choice = {"device": hardware.device.type, "dtype": "bf16" if hardware.bf16 else "fp32"}
    write_whole(file, json.dumps(choice))
    return hardware


def refuse_four_bit_on_mps(hardware: Hardware) -> None:
    """ConfigError where bitsandbytes has no 4-bit kernels."""
    if hardware.device.type == "mps":
        raise ConfigError('train_kind: bitsandbytes has no 4-bit layers for MPS. Take "lora", or device = "cpu".')


# --------------------------------------------------------------------------- threads


def threads_for(role: Role) -> int:
    """How a worker's cores are split between who trains and who samples.

    A trainer takes all of them while it updates, or a half beside the sampler of the next rollouts. An engine takes a
    half, 4 at most: its matrices are a row per request, and with two threads on two cores a busy neighbour made single
    requests ten times slower (484 to 43 tokens/s).
    """
    cores = cpu_cores()
    if role == "trainer":
        return max(1, min(cores, MAX_TRAINER_THREADS))
    if role == "trainer beside its sampler":
        return max(1, min(cores // 2, MAX_TRAINER_THREADS))
    return max(1, min(cores // 2, MAX_INFERENCE_THREADS))


def use_cpu_threads(threads: int | None = None) -> None:
    """Bound torch's threads; None: a trainer's share."""
    torch.set_num_threads(threads or threads_for("trainer"))


def cpu_cores() -> int:
    """Cores this process may use: an equal share of the machine's, where jobs or processes of one run side by side."""
    return max(1, machine_cores() // int(os.environ.get(SLOTS_VARIABLE, "1")) // processes())


def processes() -> int:
    """Of this job: each takes an equal part of every batch."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return int(psutil.virtual_memory().available)


# --------------------------------------------------------------------------- inside


def _device(asked: str) -> str:
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return next(kind for kind, is_there in there.items() if is_there)
    if asked not in there:
        raise ConfigError(f"device: {asked!r} is none of auto, {', '.join(there)}.")
    if not there[asked]:
        at_hand = ", ".join(kind for kind, is_there in there.items() if is_there)
        raise ConfigError(f'device: this machine has no {asked}, as torch sees it; at hand: {at_hand}. Take "auto".')
    return asked


def _dtype(device: torch.device, asked: str, parameters: int | None) -> tuple[torch.dtype, str]:
    """The dtype and why."""
    if asked == "fp32":
        return torch.float32, "asked for"
    if asked not in ("auto", "bf16"):
        raise ConfigError(f"dtype: {asked!r} is none of auto, {', '.join(DTYPES)}.")
    if device.type == "cpu" and asked == "auto" and (parameters or 0) < SMALL_MODEL:
        size = f"{parameters / 1e6:.3g} M parameters" if parameters else "a small model"
        return torch.float32, f"{size}: bf16 would gain nothing"
    computes, reason = _computes_bf16(device)
    if computes:
        return torch.bfloat16, "asked for" if asked == "bf16" else reason
    if asked == "bf16":
        raise ConfigError(f'dtype: bf16 is not computed here: {reason}. Take "fp32" or "auto".')
    return torch.float32, reason


def _computes_bf16(device: torch.device) -> tuple[bool, str]:
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return native, "the GPU computes bf16" if native else "the GPU only emulates bf16"
    if device.type == "mps":
        try:
            one = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
            return bool((one @ one)[0, 0] == 2), "Metal computes bf16"
        except (RuntimeError, TypeError):
            return False, "this macOS has no bf16 on Metal"
    gain = bf16_gain()
    return gain >= WORTHWHILE, f"a bf16 matrix product takes {1 / gain:.2f} of fp32's time"


def bf16_gain(size: int = 512, rounds: int = 5, clock: Callable[[], float] = time.perf_counter) -> float:
    """How much faster a bf16 matrix product is than one in fp32 on this CPU: best of some, in turn, for neighbours
    disturb single ones."""
    best = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    factors = {dtype: torch.ones(size, size, dtype=dtype) for dtype in best}
    for _ in range(rounds):
        for dtype, factor in factors.items():
            start = clock()
            factor @ factor
            best[dtype] = min(best[dtype], clock() - start)
    return best[torch.float32] / max(best[torch.bfloat16], 1e-9)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
