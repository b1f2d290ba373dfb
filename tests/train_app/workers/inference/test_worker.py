"""The inference child: which engine a model gets, and what is said when it cannot be loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

torch = pytest.importorskip("torch")

from crafter_pipeline.errors import PipelineError, ServiceError  # noqa: E402
from train_app.workers.devices import Hardware  # noqa: E402
from train_app.workers.inference.chat import ChatModel  # noqa: E402
from train_app.workers.inference.engine import Engine  # noqa: E402
from train_app.workers.inference.pool import Loaded  # noqa: E402
from train_app.workers.inference.sampling import Broken, Busy, Sampling  # noqa: E402
from train_app.workers.inference.vllm import VllmEngine  # noqa: E402
from train_app.workers.inference.worker import load_chat_model, make_app  # noqa: E402
from train_app.workers.students import make_tiny, tiny_tokenizer  # noqa: E402

STANDIN = Path(__file__).parents[3] / "standins" / "fake_vllm.py"
BODY = {"messages": [{"role": "user", "content": "x"}]}


@pytest.fixture
def on_cuda(monkeypatch):
    """A machine with CUDA and vLLM, as far as choosing goes."""
    hardware = Hardware(torch.device("cuda"), torch.bfloat16, "sdpa", 1, 10**10, "a test")
    monkeypatch.setattr("train_app.workers.inference.worker.probe", lambda **_: hardware)
    monkeypatch.setenv("VLLM_COMMAND", f"{sys.executable} {STANDIN}")


def test_on_cuda_a_folder_is_served_by_vllm(on_cuda, tmp_path):
    model, tokenizer = make_tiny(seed=0)
    folder = str(tmp_path / "model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    loaded = load_chat_model(folder, tmp_path)
    try:
        assert isinstance(loaded.model.engine, VllmEngine)
        assert (loaded.model.context, loaded.bytes) == (16_384, 4 * 10**9)
        assert len(loaded.model.engine.submit([5], Sampling(2)).result(30).ids) == 2
    finally:
        loaded.model.engine.close()


def test_elsewhere_an_engine_of_ours_serves(tmp_path):
    loaded = load_chat_model("crafter-tiny", tmp_path)
    assert isinstance(loaded.model.engine, Engine) and loaded.bytes > 10**6
    loaded.model.engine.close()


class FullEngine:
    """Refuses, or fails."""

    broken = False

    def __init__(self, error):
        self.error = error

    def submit(self, prompt_ids, sampling, watch=None):
        raise self.error

    def close(self):
        pass


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (PipelineError("No weights for 'x'"), 404, "model_not_found"),
        (ServiceError("vLLM ended"), 503, "model_not_loaded"),
        (MemoryError("too large"), 503, "model_not_loaded"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_told_why(error, status, code):
    def load(path):
        raise error

    with TestClient(make_app(load, 1)) as client:
        answer = client.post("/v1/chat/completions", json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert str(error) in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Busy("9 requests wait already"), 429, "rate_limit_exceeded"),
        (Broken("the engine broke"), 503, "inference_failed"),
        (RuntimeError("boom"), 500, "inference_failed"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_refuses_answers_with_a_status(error, status, code, stream):
    model = ChatModel(FullEngine(error), tiny_tokenizer(), 4096)
    with TestClient(make_app(lambda path: Loaded(model, 1), 1)) as client:
        answer = client.post("/v1/chat/completions", json={**BODY, "stream": stream})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert (answer.headers.get("retry-after") == "1") == (status in (429, 503))
