"""vLLM as a child, against a stand-in that has its routes: what is asked of it, and how weights reach it."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

import httpx
import psutil
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from crafter_pipeline.errors import ModelError, ServiceError  # noqa: E402
from train_app.workers.inference.sampling import Busy, Sampling  # noqa: E402
from train_app.workers.inference.vllm import (  # noqa: E402
    VllmEngine,
    VllmOptions,
    VllmServer,
    adapter_name,
    serve_arguments,
    vllm_command,
)

STANDIN = Path(__file__).parents[3] / "standins" / "fake_vllm.py"
ADAPTER = {"base.layers.0.lora_A.weight": torch.ones(2, 3)}


@pytest.fixture(autouse=True)
def command(monkeypatch):
    monkeypatch.setenv("VLLM_COMMAND", f"{sys.executable} {STANDIN}")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder that looks like a model's."""
    folder = tmp_path_factory.mktemp("model")
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def shared(model, tmp_path_factory):
    """One engine for the tests that change nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_COMMAND", f"{sys.executable} {STANDIN}")
        engine = make_engine(model, tmp_path_factory.mktemp("shared"))
        yield engine
        engine.close()


def make_engine(model, folder, *, rank=None, **options):
    server = VllmServer(str(model), VllmOptions(context=64, lora_rank=rank), folder / "vllm.log")
    server.start()
    config = {"r": rank, "peft_type": "LORA"} if rank else None
    return VllmEngine(server, str(model), [2], folder / "weights", adapter_config=config, **options)


def facts(engine):
    return httpx.get(f"{engine._server.url}/facts", trust_env=False).json()


def test_ids_go_in_and_ids_with_logprobs_come_out(shared):
    sample = shared.submit([5, 6], Sampling(3, temperature=0.7, seed=4, top_logprobs=2)).result(30)
    assert (sample.prompt_ids, len(sample.ids), sample.logprobs) == ((5, 6), 3, (-0.5,) * 3)
    assert (sample.version, sample.finished) == (0, False)
    assert sample.top_logprobs[0] == ((sample.ids[0], -0.5), (sample.ids[0] + 1, -2.0))
    asked = facts(shared)["seen"][-1]
    assert (asked["prompt"], asked["temperature"], asked["top_p"], asked["seed"]) == ([5, 6], 0.7, 1.0, 4)
    assert asked["stop_token_ids"] == [2] and asked["return_token_ids"]


def test_a_prompt_is_scored_and_nothing_is_drawn(shared):
    sample = shared.submit([5, 6, 9], Sampling(0, prompt_logprobs=True)).result(30)
    assert sample.ids == () and sample.prompt_logprobs == pytest.approx((-0.6, -0.9))


def test_a_watcher_sees_each_token_and_can_end_the_answer(shared):
    tokens = []

    def watch(token):
        tokens.append(token.id)
        return len(tokens) == 2

    sample = shared.submit([11, 12], Sampling(20), watch).result(30)
    assert list(sample.ids) == tokens and sample.finished and len(sample.logprobs) == 2
    deadline = time.monotonic() + 5
    while [11, 12] not in facts(shared)["aborted"]:
        assert time.monotonic() < deadline, "vLLM goes on sampling"
        time.sleep(0.05)


def test_a_cancelled_request_is_left(shared):
    future = shared.submit([7, 1], Sampling(3))
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(5)


def test_a_refusal_is_told_with_vllms_words(shared):
    with pytest.raises(ModelError, match="maximum context length is 64"):
        shared.submit([5] * 64, Sampling(3)).result(30)


def test_a_full_queue_refuses(model, tmp_path):
    engine = make_engine(model, tmp_path, max_waiting=1)
    try:
        slow = engine.submit([7, 1], Sampling(3))
        with pytest.raises(Busy, match="1 requests"):
            engine.submit([5], Sampling(3))
        assert slow.result(30).ids
        assert engine.submit([5], Sampling(1)).result(30).ids
    finally:
        engine.close()


def test_adapters_are_published_by_name_and_old_ones_unloaded(model, tmp_path):
    engine = make_engine(model, tmp_path, rank=12)  # served with 16, the next that vLLM knows
    try:
        for version in (1, 2, 3):
            engine.publish({k: version * v for k, v in ADAPTER.items()}, version)
        sample = engine.submit([5], Sampling(1)).result(30)
        told = facts(engine)
        assert sample.version == 3 and told["seen"][-1]["model"] == adapter_name(3)
        assert told["adapters"] == [adapter_name(2), adapter_name(3)]
        assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == told["adapters"]
        assert sample.ids[0] == 100 + (18 + 5) % 50, "the adapter's own weights answer"
    finally:
        engine.close()


def test_whole_weights_start_the_server_anew_after_the_answers_under_way(model, tmp_path):
    engine = make_engine(model, tmp_path)
    try:
        slow = engine.submit([7, 1], Sampling(3))
        time.sleep(0.2)
        engine.publish({"w": torch.full((2,), 5.0)}, 1)
        assert slow.result(1).version == 0
        sample = engine.submit([6], Sampling(1)).result(30)
        assert sample.version == 1 and sample.ids[0] == 100 + (10 + 6) % 50
        assert Path(facts(engine)["model"], "config.json").is_file()
    finally:
        engine.close()


def test_a_server_that_does_not_start_is_told_with_its_last_words(model, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_COMMAND", f"{sys.executable} -c \"raise SystemExit('no CUDA here')\"")
    with pytest.raises(ServiceError, match="no CUDA here"):
        VllmServer(str(model), VllmOptions(context=64), tmp_path / "vllm.log").start()


def test_the_server_ends_with_its_engine_and_with_whoever_started_it(model, tmp_path):
    server = VllmServer(str(model), VllmOptions(context=64), tmp_path / "vllm.log")
    server.start()
    wrapper = psutil.Process(server._service.process.pid)
    (child,) = wrapper.children()
    os.kill(wrapper.pid, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child.pid) and child.status() != psutil.STATUS_ZOMBIE:  # orphans may wait for their reaper
        assert time.monotonic() < deadline, "vLLM outlives us"
        time.sleep(0.05)
    server.stop()


def test_the_key_travels_by_the_environment_and_only_loopback_listens():
    arguments = serve_arguments("m", 1, VllmOptions(context=64, lora_rank=8, adapter="/a"))
    assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
    assert not any("key" in a for a in arguments) and f"{adapter_name(0)}=/a" in arguments


def test_without_vllm_there_is_no_command(monkeypatch):
    monkeypatch.delenv("VLLM_COMMAND")
    monkeypatch.setenv("PATH", "")
    assert vllm_command() is None
