"""Which Prefect server a command talks to, found out without importing Prefect."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import tomli

from crafter_pipeline.connections import project_root
from crafter_pipeline.processes import Service

DEFAULT_PORT = 4200

CLIENT_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "crafter_pipeline",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
"""For every process of ours that imports Prefect."""

SERVER_SETTINGS = CLIENT_SETTINGS | {
    # Prefect's default is one transaction per event: five times the CPU, and locked databases under load.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "200",
}
PRIVATE_SETTINGS = SERVER_SETTINGS | {
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
}
"""A server for one run has nothing to schedule."""


def prefect_home() -> Path:
    """Where Prefect keeps its profiles and database."""
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()


def configured_api_url() -> str | None:
    """PREFECT_API_URL as Prefect would read it: environment, else the active profile."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    try:
        data = tomli.loads((prefect_home() / "profiles.toml").read_text(encoding="utf-8"))
        name = os.environ.get("PREFECT_PROFILE") or data["active"]
        value = data["profiles"][name].get("PREFECT_API_URL")
    except (OSError, KeyError, TypeError, AttributeError, tomli.TOMLDecodeError):
        return None
    return str(value) if value else None


def healthy(api_url: str) -> bool:
    """Whether a Prefect API answers there."""
    try:
        answer = httpx.get(f"{api_url.rstrip('/')}/health", timeout=3.0)
        return answer.status_code == 200 and answer.json() is True
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return False


def prefect_server(log: Path, *, host: str = "127.0.0.1", port: int = 0, private: bool = True) -> Service:
    """A Prefect server as a child; not started yet."""
    settings = PRIVATE_SETTINGS if private else SERVER_SETTINGS
    return Service(
        "Prefect server", "crafter_pipeline.cli.prefect_server", [], log=log, host=host, port=port,
        environment=settings | {"PYTHONPATH": python_path()},
    )  # fmt: skip


def python_path() -> str:
    """PYTHONPATH that finds our packages in a child, wherever it runs."""
    return os.pathsep.join(p for p in (str(project_root()), os.environ.get("PYTHONPATH")) if p)
