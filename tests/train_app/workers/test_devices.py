"""Which device, which numbers, how many threads: chosen, and told with the reason."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from crafter_pipeline.errors import ConfigError  # noqa: E402
from train_app.slots import SLOTS_VARIABLE  # noqa: E402
from train_app.workers import devices  # noqa: E402
from train_app.workers.devices import Hardware, bf16_gain, probe, refuse_four_bit_on_mps, settled  # noqa: E402

LARGE = 100_000_000


@pytest.fixture
def cpu_alone(monkeypatch):
    """A machine without an accelerator; returns how to set what bf16 gains on its CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return lambda gain: monkeypatch.setattr(devices, "bf16_gain", lambda: gain)


@pytest.fixture
def cuda(monkeypatch):
    """A machine with an NVIDIA GPU, as torch tells of it; returns how to set whether that computes bf16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80 << 30, 141 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    return lambda native: monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation
    )


@pytest.mark.parametrize(
    ("asked", "parameters", "gain", "dtype", "reason"),
    [
        ("auto", 450_000, 3.0, torch.float32, "0.45 M parameters: bf16 would gain nothing"),
        ("auto", None, 3.0, torch.float32, "a small model"),
        ("auto", LARGE, 3.0, torch.bfloat16, "takes 0.33 of fp32's time"),
        ("auto", LARGE, 1.1, torch.float32, "takes 0.91 of fp32's time"),
        ("bf16", 450_000, 3.0, torch.bfloat16, "asked for"),
        ("fp32", LARGE, 3.0, torch.float32, "asked for"),
    ],
)
def test_a_cpu_takes_bf16_only_where_it_gains(cpu_alone, asked, parameters, gain, dtype, reason):
    cpu_alone(gain)
    hardware = probe("auto", asked, parameters=parameters)
    assert (hardware.device.type, hardware.dtype, hardware.attention) == ("cpu", dtype, "sdpa")
    assert reason in hardware.why
    assert hardware.facts()["dtype"] == ("bf16" if dtype is torch.bfloat16 else "fp32")
    assert hardware.memory_bytes > 0


def test_bf16_that_is_not_computed_is_refused(cpu_alone):
    cpu_alone(0.5)
    with pytest.raises(ConfigError, match="bf16 is not computed here: a bf16 matrix product takes 2.00 of fp32's time"):
        probe("cpu", "bf16")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(cpu_alone, device):
    with pytest.raises(ConfigError, match=f"no {device}, .* at hand: cpu"):
        probe(device)


def test_a_gpu_is_taken_with_its_bf16(cuda):
    cuda(native=True)
    hardware = probe()
    assert (hardware.device.type, hardware.dtype, hardware.memory_bytes) == ("cuda", torch.bfloat16, 80 << 30)
    assert hardware.why.startswith("NVIDIA H200, bf16 (the GPU computes bf16)")


def test_an_older_gpu_trains_in_fp32(cuda):
    cuda(native=False)
    assert probe().dtype is torch.float32
    with pytest.raises(ConfigError, match="the GPU only emulates bf16"):
        probe("cuda", "bf16")


def test_four_bits_are_refused_on_mps():
    hardware = Hardware(torch.device("mps"), torch.float32, "sdpa", 1, 1, "")
    with pytest.raises(ConfigError, match='no 4-bit layers for MPS. Take "lora"'):
        refuse_four_bit_on_mps(hardware)


def test_a_job_that_goes_on_keeps_its_numbers(cpu_alone, tmp_path):
    cpu_alone(3.0)
    assert settled(tmp_path, "auto", "auto", parameters=LARGE).bf16
    assert json.loads((tmp_path / "hardware.json").read_text()) == {"device": "cpu", "dtype": "bf16"}
    cpu_alone(1.25)  # a busy neighbour, at the second start
    assert settled(tmp_path, "auto", "auto", parameters=LARGE).bf16


@pytest.mark.parametrize(("cores", "trainer", "inference"), [(1, 1, 1), (2, 2, 1), (4, 4, 2), (64, 16, 4)])
def test_threads_are_bounded_and_split(monkeypatch, cores, trainer, inference):
    monkeypatch.setattr(devices, "cpu_cores", lambda: cores)
    assert (devices.threads_for("trainer"), devices.threads_for("inference")) == (trainer, inference)


@pytest.mark.parametrize(("slots", "cores"), [(None, 8), ("1", 8), ("3", 2), ("16", 1)])
def test_jobs_side_by_side_share_the_cores(monkeypatch, slots, cores):
    monkeypatch.setattr(devices, "machine_cores", lambda: 8)
    monkeypatch.delenv(SLOTS_VARIABLE, raising=False)
    if slots is not None:
        monkeypatch.setenv(SLOTS_VARIABLE, slots)
    assert (devices.cpu_cores(), devices.threads_for("trainer")) == (cores, cores)


def test_the_gain_is_measured_best_of_some_in_turn():
    ticks = iter([0, 4, 10, 11, 20, 22, 30, 33])  # fp32 4, bf16 1, fp32 2, bf16 3
    assert bf16_gain(size=2, rounds=2, clock=lambda: next(ticks)) == 2.0
