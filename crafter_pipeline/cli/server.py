"""Which Prefect server a command talks to, and with which settings, found out without importing Prefect."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import tomli

from crafter_pipeline.connections import project_root
from crafter_pipeline.processes import Service

DEFAULT_PORT = 4200
RUN_FILES = "/run-files"
"""Where a server of ours shows the run folders."""

UNSCHEDULED = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
}
"""A server for one run has nothing to schedule."""


def prefect_variables() -> dict[str, str]:
    """The project's Prefect settings, `[tool.prefect]` of pyproject.toml, as environment variables.

    Prefect reads that table from the working directory alone; children of ours may run elsewhere. What the user has set
    in the environment is left out: it wins.
    """
    try:
        table = tomli.loads((project_root() / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["prefect"]
    except (OSError, KeyError):  # installed as a wheel: Prefect's own defaults
        table = {}
    settings = {"DO_NOT_TRACK": "1"} | dict(_variables(table, "PREFECT"))
    return {name: value for name, value in settings.items() if name not in os.environ}


def _variables(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        name = f"{prefix}_{key.upper()}"
        if isinstance(value, Mapping):
            yield from _variables(value, name)
        elif isinstance(value, list):
            yield name, ",".join(map(str, value))
        else:
            yield name, str(value).lower() if isinstance(value, bool) else str(value)


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


def prefect_server(
    log: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    scheduled: bool = False,
    run_files: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Service:
    """A Prefect server as a child; not started yet. Started again after it died, it has the same port.

    Args:
        scheduled: Whether it makes the runs of schedules.
        run_files: Folder of run folders that it shows at /run-files/; None: none.
        environment: Variables on top of the project's.
    """
    settings = prefect_variables() | ({} if scheduled else UNSCHEDULED) | {"PYTHONPATH": python_path()}
    return Service(
        "Prefect server",
        "crafter_pipeline.cli.prefect_server",
        [] if run_files is None else ["--run-files", str(run_files)],
        log=log,
        host=host,
        port=port,
        environment=settings | dict(environment or {}),
        keeps_port=True,
    )


def python_path() -> str:
    """PYTHONPATH that finds our packages in a child, wherever it runs."""
    return os.pathsep.join(p for p in (str(project_root()), os.environ.get("PYTHONPATH")) if p)
