"""The task app with a scripted chat model behind it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fastapi.testclient import TestClient

from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.settings import Settings
from task_app.app import make_app


def load_standin(name: str) -> ModuleType:
    """A module of tests/standins, by path: some dependency installs a package called `tests`."""
    full = f"standins_{name}"
    if full not in sys.modules:
        spec = spec_from_file_location(full, Path(__file__).parents[1] / "standins" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[full] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[full])
    return sys.modules[full]


standin = load_standin("chat_model")


@pytest.fixture
def tool_call() -> Callable[..., dict[str, Any]]:
    return standin.tool_call


@pytest.fixture
def make_chat() -> Callable[..., Any]:
    """ScriptedChat(script, latency_s)."""
    return standin.ScriptedChat


@pytest.fixture
def make_body() -> Callable[..., dict[str, Any]]:
    """A rollout request; `policy` and `env` are laid over the defaults' configs, the rest over the body."""

    def make(run_id: str = "run", *, policy: Any = None, env: Any = None, seed: int = 3, **top: Any) -> dict[str, Any]:
        text = {"use_tools": False, "observation": "sparse", "max_actions_per_turn": 1}
        config = {"model": "scripted", "inference_url": "http://model.test/v1", **text, **(policy or {})}
        env = {"max_env_steps": 4} if env is None else env
        return {"run_id": run_id, "env": {"seed": seed, "config": env}, "policy": {"config": config}, **top}

    return make


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """Start the real app over a scripted model: serve(chat, trace_dir=…, api_keys=[…]) -> TestClient."""
    clients: list[TestClient] = []

    def start(chat: Any, **options: Any) -> TestClient:
        settings = Settings(_env_file=None)
        options.setdefault("trace_dir", tmp_path / "traces")
        model = ChatClient(settings, transport=chat.transport(), first_wait_seconds=0.001)
        client = TestClient(make_app(options.pop("app", "grpo-crafter"), chat=model, **options))
        clients.append(client)
        return client.__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def trace_rows(tmp_path: Path) -> Callable[[str], list[tuple[Any, ...]]]:
    """Rows of a query over the one trace database of this test."""
    import sqlite3

    def rows(sql: str) -> list[tuple[Any, ...]]:
        (path,) = (tmp_path / "traces").glob("*.db")
        db = sqlite3.connect(path)
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()

    return rows
