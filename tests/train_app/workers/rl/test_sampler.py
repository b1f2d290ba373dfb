"""How new weights of an RL job reach who samples: our engine, and vLLM's stand-in."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from peft import get_peft_model  # noqa: E402

from crafter_pipeline.config import RlConfig  # noqa: E402
from train_app.workers.devices import probe  # noqa: E402
from train_app.workers.inference.sampling import Sampling  # noqa: E402
from train_app.workers.rl.sampler import policy_of  # noqa: E402
from train_app.workers.students import load_trainable, make_tiny  # noqa: E402

STANDIN = Path(__file__).parents[3] / "standins" / "fake_vllm.py"
CPU = probe("cpu", "fp32")


@pytest.fixture
def base(tmp_path):
    """A folder with an untrained student."""
    model, tokenizer = make_tiny(0)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def policy(base, folder, monkeypatch=None, **values):
    """The policy and the model that trains."""
    config = RlConfig(**values)
    trainable = load_trainable(base, config, CPU)
    hardware = CPU
    if monkeypatch is not None:
        monkeypatch.setenv("VLLM_COMMAND", f"{sys.executable} {STANDIN}")
        hardware = dataclasses.replace(CPU, device=torch.device("cuda"))
    trained = get_peft_model(trainable.model, trainable.peft_config) if trainable.peft_config else trainable.model
    return policy_of(base, trainable, config, hardware, folder), trained


def move(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)


def sampled(sampler):
    return sampler.submit((300, 301), Sampling(3, seed=1)).result(60)


def test_an_adapter_reaches_vllm_under_a_name_per_version_once(base, tmp_path, monkeypatch):
    sampler, trained = policy(base, tmp_path, monkeypatch, train_kind="lora", lora_rank=4)
    try:
        sampler.publish(trained, 0)
        first = sampled(sampler.sampler)
        move(trained)
        sampler.publish(trained, 1)
        sampler.publish(trained, 1)  # after an evaluation: vLLM would refuse the name
        second = sampled(sampler.sampler)
    finally:
        sampler.close()
    assert (first.version, second.version) == (0, 1) and first.ids != second.ids


def test_our_engine_samples_by_the_weights_that_were_published(base, tmp_path):
    sampler, trained = policy(base, tmp_path, train_kind="lora", lora_rank=4)
    try:
        sampler.publish(trained, 0)
        first = sampled(sampler.sampler)
        move(trained)
        sampler.publish(trained, 1)
        second = sampled(sampler.sampler)
    finally:
        sampler.close()
    assert (first.version, second.version) == (0, 1) and first.logprobs != second.logprobs
