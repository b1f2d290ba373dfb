"""`up` and `down`: parts that come back, a profile that stays the user's, run folders in a browser."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from crafter_pipeline import detached
from crafter_pipeline.cli import main, profile
from crafter_pipeline.cli.run_files import add_run_files
from crafter_pipeline.cli.server import prefect_variables
from crafter_pipeline.cli.supervision import DEATHS, Part
from crafter_pipeline.errors import ServiceError
from crafter_pipeline.processes import Service, listen

ROOT = Path(__file__).resolve().parents[2]
API_URL = "http://127.0.0.1:5199/api"


@pytest.fixture(autouse=True)
def state(monkeypatch, tmp_path) -> Path:
    """The state folder, the runs and Prefect's home, away from the user's."""
    monkeypatch.setenv("CRAFTER_PIPELINE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("CRAFTER_PIPELINE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    return tmp_path / "state"


def test_up_says_who_does_not_own_its_port(capsys, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> httpx.Response:
        raise httpx.ReadTimeout("no answer")

    with listen("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        monkeypatch.setattr("crafter_pipeline.cli.server.httpx.get", refuse)
        assert main(["up", "--background"]) == 2
    assert f"Port {port} is taken by something that is not Prefect" in capsys.readouterr().err


def test_a_second_stack_is_not_started(capsys):
    with detached.registered("stack"):
        assert main(["up"]) == 0
    assert f"The stack is up already (process {os.getpid()}, in a terminal)" in capsys.readouterr().out


def test_down_with_nothing_to_stop(capsys):
    assert main(["down"]) == 0
    assert "Nothing was running" in capsys.readouterr().out


def test_a_detached_service_is_found_again_and_stopped(monkeypatch, tmp_path):
    from crafter_pipeline.config import TaskAppConfig
    from tasks.task_app import start_task_app

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    config = TaskAppConfig(trace_dir=tmp_path / "traces")
    url = start_task_app.fn(config, "crafter")
    assert start_task_app.fn(config, "crafter") == url
    (running,) = detached.detached()
    assert running.alive
    assert main(["down"]) == 0
    assert not running.alive and detached.detached() == []


# --------------------------------------------------------------------------- settings


def test_the_settings_of_pyproject_reach_children_as_variables(monkeypatch):
    monkeypatch.delenv("PREFECT_WORKER_QUERY_SECONDS", raising=False)
    variables = prefect_variables()
    assert variables["PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE"] == "200"
    assert variables["PREFECT_PLUGINS_ENABLED"] == "true"
    assert variables["PREFECT_WORKER_QUERY_SECONDS"] == "2"
    assert not [name for name in variables if "API_URL" in name], "it would beat everybody's profile"


def test_the_users_own_variable_wins(monkeypatch):
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "7")
    assert "PREFECT_WORKER_QUERY_SECONDS" not in prefect_variables()


def test_prefect_knows_every_setting(monkeypatch):
    """Prefect ignores settings that it does not know, too."""
    from prefect.settings import get_current_settings

    ours = {name: value for name, value in prefect_variables().items() if name.startswith("PREFECT")}
    known = get_current_settings().to_environment_variables(exclude_unset=False)
    assert set(ours) <= set(known)


@pytest.fixture
def profiles(tmp_path) -> Iterator[Path]:
    """The user's profiles file."""
    from prefect.settings import PREFECT_PROFILES_PATH, temporary_settings

    path = tmp_path / "profiles.toml"
    with temporary_settings({PREFECT_PROFILES_PATH: path}):
        yield path


def test_the_profile_names_the_server_while_it_is_up(profiles, state):
    profiles.write_text('active = "mine"\n[profiles.mine]\n')
    with profile.named_in_profile(API_URL) as said:
        assert API_URL in profiles.read_text() and "PREFECT_PLUGINS_ENABLED" in profiles.read_text()
        assert len(said) == 2 and profile.change() is not None
    assert "PREFECT_" not in profiles.read_text()
    assert profile.change() is None


def test_a_server_that_the_user_named_stays(profiles):
    profiles.write_text('active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://elsewhere:4200/api"\n')
    with profile.named_in_profile(API_URL):
        assert API_URL not in profiles.read_text()
    assert "http://elsewhere:4200/api" in profiles.read_text()


# --------------------------------------------------------------------------- supervision


ANSWERING = """
import http.server, os, socket, sys

class Pid(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())

server = http.server.HTTPServer(("127.0.0.1", 0), Pid, bind_and_activate=False)
server.socket = socket.socket(fileno=int(sys.argv[2]))
server.serve_forever()
"""


@pytest.fixture
def answering(tmp_path) -> Iterator[Service]:
    """A started child that answers with its pid, and keeps its port when it dies."""
    (tmp_path / "answering.py").write_text(ANSWERING)
    child = Service(
        "child",
        "answering",
        [],
        log=tmp_path / "child.log",
        environment={"PYTHONPATH": str(tmp_path)},
        keeps_port=True,
    )
    child.start()
    yield child
    child.stop()


def test_who_calls_while_a_part_is_dead_waits_for_the_next_one(answering):
    dead, said = int(httpx.get(answering.url, timeout=20.0).text), []
    assert answering.process is not None
    os.kill(dead, signal.SIGKILL)
    answering.process.wait()
    with httpx.Client(timeout=20.0) as http:
        part = Part(answering)
        part.see_to(said.append)
        assert int(http.get(answering.url).text) == answering.process.pid != dead
        part.see_to(said.append)  # it lives: nothing to say
    (line,) = said
    assert f"The child (process {dead}) ended with exit code -9" in line and "started again" in line


def test_a_port_is_given_back_at_the_end(answering):
    httpx.get(answering.url, timeout=20.0)
    answering.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(answering.url, timeout=5.0)


def dying(tmp_path: Path) -> tuple[Part, list[str]]:
    """A part that is dead whenever one looks, and what it did."""
    starts: list[str] = []
    process = SimpleNamespace(poll=lambda: 1, pid=1, returncode=1)
    log = tmp_path / "part.log"
    log.write_text("the last words\n")
    service: Any = SimpleNamespace(name="worker", process=process, log=log, start=lambda: starts.append("started"))
    return Part(service), starts


def test_a_part_that_keeps_dying_is_given_up(tmp_path):
    part, starts = dying(tmp_path)
    for _ in range(DEATHS - 1):
        part.see_to(lambda text: None)
    with pytest.raises(ServiceError, match=r"(?s)worker.*5th time within 10 minutes: giving up.*the last words"):
        part.see_to(lambda text: None)
    assert len(starts) == DEATHS - 1


def test_a_part_that_dies_now_and_then_is_not(tmp_path, monkeypatch):
    part, starts = dying(tmp_path)
    clock = iter(range(0, 10_000, 200))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    for _ in range(3 * DEATHS):
        part.see_to(lambda text: None)
    assert len(starts) == 3 * DEATHS


# --------------------------------------------------------------------------- run folders in a browser


@pytest.fixture
def pages(tmp_path) -> TestClient:
    """An app like Prefect's, which answers everything, with the run folders in front."""
    runs = tmp_path / "runs"
    (runs / "20260101-tiny" / "logs").mkdir(parents=True)
    (runs / "20260101-tiny" / "report.html").write_text("<h1>report</h1>")
    (runs / "20260101-tiny" / "a & b.txt").write_text("text")
    (runs / "latest").symlink_to("20260101-tiny")
    (tmp_path / "secret.txt").write_text("secret")
    (runs / "out").symlink_to(tmp_path)
    (runs / "20260101-tiny" / "out.txt").symlink_to(tmp_path / "secret.txt")
    (runs / ".env").write_text("KEY=secret")
    app = Starlette(
        routes=[Route("/{path:path}", lambda request: PlainTextResponse("Prefect"), methods=["GET", "POST"])]
    )
    add_run_files(app, runs)
    return TestClient(app)


def test_run_folders_are_listed_and_their_files_shown(pages):
    assert "20260101-tiny/" in pages.get("/run-files").text
    listed = pages.get("/run-files/20260101-tiny/").text
    assert 'href="a%20%26%20b.txt"' in listed and "a &amp; b.txt" in listed and "logs/" in listed
    report = pages.get("/run-files/latest/report.html")
    assert report.text == "<h1>report</h1>" and report.headers["content-type"].startswith("text/html")
    assert report.headers["content-security-policy"].startswith("sandbox")
    assert pages.get("/runs").text == "Prefect"


@pytest.mark.parametrize(
    "path",
    ["out/secret.txt", "out/", "latest/out.txt", "..%2fsecret.txt", "latest/..%2f..%2fsecret.txt", ".env", "nothing"],
)
def test_nothing_else_is_shown(pages, path):
    answer = pages.get(f"/run-files/{path}")
    assert answer.status_code == 404 and "secret" not in answer.text.replace(path, "")


def test_run_folders_cannot_be_written(pages):
    for method in ("POST", "PUT", "DELETE"):
        assert pages.request(method, "/run-files/latest/report.html").status_code == 405
        assert pages.request(method, "/run-files/").status_code == 405
