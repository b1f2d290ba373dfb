"""`doctor`: it finds what is broken, says what runs, and gives no secret away."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from crafter_pipeline import detached
from crafter_pipeline.cli import doctor as doctor_package
from crafter_pipeline.cli import main
from crafter_pipeline.cli.doctor import machine, prefect, running
from crafter_pipeline.cli.doctor.check import Check


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path) -> Path:
    """State and Prefect's home, away from the user's."""
    monkeypatch.setenv("CRAFTER_PIPELINE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return tmp_path


def test_doctor_names_keys_never_their_values(capsys, monkeypatch):
    monkeypatch.setenv("GROQ_API_KEY", "gsk-secret")
    children = (prefect.server_and_plugin, machine.accelerator)  # seconds each, and of no use here
    monkeypatch.setattr(doctor_package, "CHECKS", tuple(c for c in doctor_package.CHECKS if c not in children))
    assert main(["doctor", "--json"]) in (0, 1)
    out = capsys.readouterr().out
    assert "GROQ_API_KEY" in out and "gsk-secret" not in out
    assert {c["state"] for c in json.loads(out)} <= {"ok", "note", "broken"}
    assert {c["name"] for c in json.loads(out)} >= {"python", "fastapi", "disk", "write", "running"}


def test_a_check_that_breaks_is_a_finding(capsys, monkeypatch):
    def broken() -> list[Check]:
        raise OSError("no such device")

    monkeypatch.setattr(doctor_package, "CHECKS", (broken,))
    assert main(["doctor"]) == 1
    assert "BROKEN" in (out := capsys.readouterr().out) and "no such device" in out


@pytest.mark.parametrize("fastapi, state", [("0.150.0", "ok"), ("0.155.1", "broken")])
def test_a_release_that_prefect_cannot_live_with_is_broken(monkeypatch, fastapi, state):
    monkeypatch.setattr(machine, "version", lambda name: {"fastapi": fastapi, "sqlalchemy": "2.0.58"}[name])
    (found,) = [check for check in machine.pinned_packages() if check.name == "fastapi"]
    assert found.state == state


@pytest.mark.parametrize("free, state", [(80e9, "ok"), (3e9, "note"), (1e8, "broken")])
def test_little_room_is_said(monkeypatch, free, state):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    assert {check.state for check in machine.disk_space()} == {state}


# --------------------------------------------------------------------------- Prefect


@pytest.mark.parametrize("revision, state", [("known", "ok"), ("of-the-future", "broken")])
def test_a_database_of_a_newer_prefect_is_found(monkeypatch, elsewhere, revision, state):
    monkeypatch.setattr(prefect, "_known_revisions", lambda: {"known"})
    home = elsewhere / "prefect"
    home.mkdir()
    with sqlite3.connect(home / "prefect.db") as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
    connection.close()
    (found,) = prefect.database()
    assert found.state == state


def test_this_prefects_migrations_are_found():
    assert len(prefect._known_revisions()) > 20


class Api:
    """A Prefect API that answers from a table."""

    api_url = "http://127.0.0.1:4200/api/"

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def request(self, method: str, path: str, json: Any) -> Any:
        return type("Answer", (), {"json": lambda _: self.answers[path]})()


@pytest.fixture
def api(monkeypatch) -> Callable[..., None]:
    """`api({path: answer})`: what the configured server says."""

    def answers(table: dict[str, Any]) -> None:
        for module in (prefect, running):
            monkeypatch.setattr(module, "connected", lambda: Api(table))

    return answers


def a_deployment(*, active: bool = True, age_seconds: float = 3600.0) -> dict[str, Any]:
    updated = datetime.now(UTC) - timedelta(seconds=age_seconds)
    schedules = [{"active": active}]
    return {"id": "d", "name": "nightly-eval", "paused": False, "schedules": schedules, "updated": updated.isoformat()}


@pytest.mark.parametrize(
    "deployment, runs, state",
    [
        ({}, 3, "ok"),
        ({}, 0, "broken"),
        ({"age_seconds": 5}, 0, "note"),
        ({"active": False}, 0, "ok"),
    ],
)
def test_a_schedule_without_runs_to_come_is_broken(api, deployment, runs, state):
    api({"/deployments/filter": [a_deployment(**deployment)], "/flow_runs/count": runs})
    (found,) = prefect.schedules()
    assert found.state == state


def test_no_server_is_started_to_ask_it():
    assert prefect.connected() is None
    assert [check.state for check in prefect.schedules()] == ["note"]
    assert running.flow_runs() == []


# --------------------------------------------------------------------------- what runs


def test_what_runs_is_said_with_its_log(elsewhere):
    log = elsewhere / "state" / "worker.log"
    with detached.registered("stack"):
        log.write_text("")
        found = [check.says for check in running.processes()]
    assert any(f"process {os.getpid()}" in says for says in found)
    assert any(str(log) in says for says in found)


def test_what_ended_by_itself_is_said(elsewhere):
    gone = {"name": "task-app-crafter", "pid": os.getpid(), "started": "long ago", "url": "http://x", "log": "x.log"}
    (elsewhere / "state").mkdir()
    (elsewhere / "state" / "task-app-crafter.json").write_text(json.dumps(gone))
    (found,) = running.processes()
    assert found.state == "note" and "ended by itself" in found.says and "x.log" in found.says


def test_flow_runs_under_way_are_said_with_their_page(api):
    run = {"id": "1234", "name": "pipeline-tiny", "state_name": "Running", "start_time": "2026-11-21T10:00:00.5Z"}
    api({"/flow_runs/filter": [run]})
    (found,) = running.flow_runs()
    assert found.says.startswith("flow run pipeline-tiny: Running since 2026-11-21 10:00:00 UTC")
    assert found.says.endswith("http://127.0.0.1:4200/runs/flow-run/1234")
