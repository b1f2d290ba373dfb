"""`python -m task_app`: what it refuses, with which exit code, and that it serves."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import httpx
import pytest

from crafter_pipeline.processes import Service
from task_app.__main__ import main


@pytest.fixture(autouse=True)
def no_key_and_no_dotenv(monkeypatch, tmp_path):
    monkeypatch.delenv("ENVIRONMENT_API_KEY", raising=False)
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


def test_an_unusable_trace_folder_is_exit_code_4(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["--port", "0", "--trace", str(tmp_path / "file")]) == 4
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_missing_env_file_is_said(capsys):
    assert main(["--env-file", "nowhere.env"]) == 2
    assert "nowhere.env" in capsys.readouterr().err


def test_the_service_starts_as_a_child_and_asks_for_its_key(tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    options = ["grpo-crafter", "--trace", str(tmp_path / "t")]
    environment = {"ENVIRONMENT_API_KEY": "k-123456", "PYTHONPATH": root}
    with Service("task app", "task_app", options, log=tmp_path / "log.txt", environment=environment) as service:
        assert httpx.get(service.url + "/health").status_code == 401
        assert httpx.get(service.url + "/health", headers={"X-API-Key": "k-123456"}).json()["healthy"]
    said = (tmp_path / "log.txt").read_text()
    assert service.url in said and "ENVIRONMENT_API_KEY" in said and "k-123456" not in said
    assert list((tmp_path / "t").glob("task_app_traces_*.db"))


def test_help_names_every_option():
    text = subprocess.run(
        [sys.executable, "-m", "task_app", "--help"],
        capture_output=True,
        text=True,
        cwd=os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
    ).stdout
    assert all(
        option in text for option in ("--host", "--port", "--fd", "--trace", "--trace-db", "--reload", "--env-file")
    )
