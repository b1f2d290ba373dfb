"""`python -m task_app`: what it refuses, with which exit code, and that it serves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from fastapi.testclient import TestClient

from crafter_pipeline.contracts import Reply, Rollout, RolloutRequest, StopReason, Turn
from crafter_pipeline.processes import Service, wait_until
from crafter_pipeline.settings import Settings, load_settings
from crafter_pipeline.traces.store import TraceStore
from task_app.__main__ import _make, _parser, _traces, main
from task_app.environments import REGISTRY, environment_of
from task_app.environments.math import MathEnvironment
from task_app.plan import plan_rollout

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def rollout_of(run_id: str) -> Rollout:
    """A finished rollout of one turn."""
    turn = Turn(0, ({"role": "user", "content": "u"},), Reply("noop"), ("noop",), None, 0.0, (), 1.0, 2.0)
    return Rollout(run_id, "crafter", 3, "p", "m", "custom", (turn,), (), 0.0, 1, StopReason.TURN_LIMIT, 1.0)


@pytest.fixture(autouse=True)
def no_key_and_no_dotenv(monkeypatch, tmp_path):
    for name in (*map(str.upper, Settings.model_fields), "DEV_ENVIRONMENT_API_KEY", "SFT_OUTPUT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_an_open_bind_beyond_loopback_is_refused(capsys):
    assert main(["--host", "0.0.0.0", "--port", "0"]) == 2
    assert "ENVIRONMENT_API_KEY" in capsys.readouterr().err


def test_an_unknown_app_names_the_known_ones(capsys):
    assert main(["grpo-chess"]) == 2
    assert "grpo-crafter" in capsys.readouterr().err


def test_an_occupied_port_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    error = capsys.readouterr().err
    assert "Cannot listen" in error and error.count("\n") == 1


def test_an_unusable_trace_folder_is_refused_at_the_start(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--port", "0", "--trace", str(tmp_path / "file")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_missing_problems_are_said_before_anything_is_served(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(REGISTRY, "math", MathEnvironment(Settings(_env_file=None, math_local_dir=tmp_path / "no")))
    assert main(["math", "--port", "0", "--trace", str(tmp_path / "traces")]) == 1
    assert "MATH_LOCAL_DIR" in capsys.readouterr().err and not (tmp_path / "traces").exists()


def test_a_missing_env_file_is_said(capsys):
    assert main(["--env-file", "nowhere.env"]) == 2
    assert "nowhere.env" in capsys.readouterr().err


def test_the_service_starts_as_a_child_and_asks_for_its_key(tmp_path):
    options = ["grpo-crafter", "--trace", str(tmp_path / "t")]
    environment = {"ENVIRONMENT_API_KEY": "k-123456", "PYTHONPATH": ROOT}
    with Service("task app", "task_app", options, log=tmp_path / "log.txt", environment=environment) as service:
        assert httpx.get(service.url + "/health").status_code == 401
        assert httpx.get(service.url + "/health", headers={"X-API-Key": "k-123456"}).json()["healthy"]
    said = (tmp_path / "log.txt").read_text()
    assert service.url in said and "ENVIRONMENT_API_KEY" in said and "k-123456" not in said
    assert list((tmp_path / "t").glob("task_app_traces_*.db"))


def test_aliases_open_too(monkeypatch, tmp_path):
    monkeypatch.setenv("ENVIRONMENT_API_KEY_ALIASES", "old-123456, older-123456")
    where = {"trace_db": str(tmp_path / "t" / "t.db"), "trace_dir": str(tmp_path / "t")}
    with TestClient(_make({"app": "grpo-crafter", **where}, None)) as client:
        assert client.get("/health").status_code == 401
        assert client.get("/health", headers={"X-API-Key": "older-123456"}).status_code == 200


@pytest.mark.parametrize("name", ["DEV_ENVIRONMENT_API_KEY", "dev_environment_api_key"])
def test_the_older_names_of_the_key_count(monkeypatch, name):
    monkeypatch.setenv("ENVIRONMENT_API_KEY", "")
    monkeypatch.setenv(name, "k-old")
    assert load_settings().task_app_keys() == ("k-old",)


def test_an_empty_key_is_no_key(monkeypatch, capsys):
    """As in a copied .env.example: it must not open a public bind."""
    monkeypatch.setenv("ENVIRONMENT_API_KEY", "")
    assert main(["--host", "0.0.0.0", "--port", "0"]) == 2


def options(*words: str):
    return _parser().parse_args(words)


def test_traces_go_where_the_flags_say_or_else_the_variables(tmp_path):
    variables = Settings(_env_file=None, taskapp_trace_db_path="a/variable.db", crafter_trace_db="reading.db")
    assert _traces(options(), variables) == ("a/variable.db", "a")
    assert _traces(options("--trace-db", "b/flag.db"), variables) == ("b/flag.db", "b")
    assert _traces(options("--trace-db", "b/flag.db", "--trace", "c"), variables) == ("b/flag.db", "c")
    trace_db, ledger = _traces(options("--trace", "c"), variables)
    assert trace_db.startswith("c/task_app_traces_") and ledger == "c"
    assert _traces(options(), Settings(_env_file=None))[1] == "traces/v3"


@pytest.mark.parametrize("off", ["0", "false", "no", "OFF"])
def test_tracing_that_is_off_writes_nothing(monkeypatch, tmp_path, off):
    monkeypatch.setenv("TASKAPP_TRACING_ENABLED", off)
    monkeypatch.setenv("TASKAPP_SFT_OUTPUT_DIR", str(tmp_path / "sft"))
    settings = load_settings()
    assert _traces(options(), settings) == (None, None)
    assert _traces(options("--trace-db", "t.db"), settings) == ("t.db", "."), "a flag wins"
    with TestClient(_make({"app": "grpo-crafter", "trace_db": None, "trace_dir": None}, None)) as client:
        assert client.app.state.desk._store is None and client.get("/health").status_code == 200
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "variable"), [([], "libsql://x.turso.io"), (["--trace-db", "libsql://x.turso.io"], ""), ([], "ws://h")]
)
def test_a_trace_server_is_refused_by_name(monkeypatch, capsys, flags, variable):
    monkeypatch.setenv("TURSO_LOCAL_DB_URL", variable)
    assert main(["--port", "0", *flags]) == 2
    error = capsys.readouterr().err
    assert ("--trace-db" if flags else "TURSO_LOCAL_DB_URL") in error and "Name a file" in error


def test_what_is_written_is_said_at_the_start(tmp_path):
    variables = {"TASKAPP_TRACE_DB_PATH": str(tmp_path / "t.db"), "SFT_OUTPUT_DIR": str(tmp_path / "sft")}
    for changes, words in (
        ({}, f"traces in {tmp_path / 't.db'}, side files in {tmp_path / 'sft'}"),
        ({"TASKAPP_TRACING_ENABLED": "0"}, "no traces (TASKAPP_TRACING_ENABLED is off)"),
    ):
        log, environment = tmp_path / "log.txt", variables | changes | {"PYTHONPATH": ROOT}
        with Service("task app", "task_app", ["grpo-crafter"], log=log, environment=environment):
            assert words in log.read_text()
        (tmp_path / "t.db").unlink(missing_ok=True)
        log.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_processes_share_the_ledger_of_a_folder(tmp_path, make_body):
    """A run_id that one has played is answered by the other, without a model."""
    options = ["--trace", str(tmp_path / "t")]
    chat = {"model": "crafter-expert", "inference_url": "http://127.0.0.1:9/v1"}
    body = make_body("shared", policy=chat)
    with TraceStore(tmp_path / "t" / "first.db") as store:
        plan = plan_rollout(RolloutRequest.model_validate(body), environment_of("crafter"))
        store.add(rollout_of("shared"), b'{"run_id": "shared"}', plan.digest)
    with (
        Service("one", "task_app", options, log=tmp_path / "1.txt", environment={"PYTHONPATH": ROOT}) as one,
        Service("two", "task_app", options, log=tmp_path / "2.txt", environment={"PYTHONPATH": ROOT}) as two,
    ):
        for service in (one, two):
            assert httpx.post(service.url + "/rollout", json=body).json() == {"run_id": "shared"}
    assert len(list((tmp_path / "t").glob("*.db"))) == 3, "each writes a file of its own"


@pytest.mark.slow
def test_reload_starts_a_new_child_and_leaves_none(tmp_path):
    log = tmp_path / "log.txt"
    service = Service("task app", "task_app", ["--reload"], log=log, environment={"PYTHONPATH": ROOT})
    with service:
        time.sleep(1.0)  # until it watches
        os.utime(os.path.join(ROOT, "task_app", "desk.py"))
        wait_until(lambda: "Reloading" in log.read_text(), 20.0, log.read_text)
        service.wait_ready()
        assert service.process is not None
        os.killpg(service.process.pid, signal.SIGINT)
        assert service.process.wait(20) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(service.url + "/livez")


def test_help_names_every_option():
    text = subprocess.run(
        [sys.executable, "-m", "task_app", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout
    assert all(
        option in text for option in ("--host", "--port", "--fd", "--trace", "--trace-db", "--reload", "--env-file")
    )
