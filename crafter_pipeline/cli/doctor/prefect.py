"""Prefect: whether its server can run at all, keeps its word about schedules, and knows our names."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from crafter_pipeline.cli.doctor.check import Check
from crafter_pipeline.cli.server import configured_api_url, healthy, prefect_home, prefect_server
from crafter_pipeline.errors import ServiceError
from crafter_pipeline.processes import wait_until

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

SCHEDULER_SECONDS = 90.0
"""After so long a schedule has runs, where the scheduler works: it looks around once a minute."""
PROBE = """
import json, prefect
from prefect.server.api.server import create_app
from flows._prefect_plugin import bare_names_work
print(json.dumps({"version": prefect.__version__, "bare_names": bare_names_work()}))
"""


def server_and_plugin() -> list[Check]:
    """The server's app can be imported and the plugin finds its place; in a child: it takes seconds and much memory."""
    environment = os.environ | {"PREFECT_PLUGINS_ENABLED": "true", "PREFECT_PLUGINS_ALLOW": "crafter_pipeline"}
    command = [sys.executable, "-c", PROBE]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    if answer.returncode:
        return [Check("prefect", "broken", "".join(answer.stderr.strip().splitlines()[-1:]))]
    found = json.loads(answer.stdout.splitlines()[-1])
    says = "`prefect deployment run crafter-pipeline` works from the checkout, and anywhere while the stack is up"
    if not found["bare_names"]:
        says = (
            "not with this Prefect, or not installed: write `prefect deployment run crafter-pipeline/crafter-pipeline`"
        )
    return [
        Check("prefect", "ok", f"{found['version']}, its server can be imported"),
        Check("bare names", "ok" if found["bare_names"] else "note", says),
    ]


def database() -> list[Check]:
    """Prefect's database under PREFECT_HOME is not of a newer Prefect, which this one could not read."""
    path = prefect_home() / "prefect.db"
    if os.environ.get("PREFECT_API_DATABASE_CONNECTION_URL") or os.environ.get(
        "PREFECT_SERVER_DATABASE_CONNECTION_URL"
    ):
        return [Check("database", "ok", "a connection URL is set; not looked at")]
    if not path.exists():
        return [Check("database", "ok", f"none yet at {path}")]
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    size = f"{path}, {path.stat().st_size / 1e6:.0f} MB"
    if revision in _known_revisions():
        return [Check("database", "ok", size)]
    says = f"{size}, was made by another Prefect than {version('prefect')}: give this one a PREFECT_HOME of its own"
    return [Check("database", "broken", says)]


def _known_revisions() -> set[str]:
    """Every state of the database that this Prefect has migrations for."""
    spec = find_spec("prefect")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "server" / "database" / "_migrations" / "versions" / "sqlite"
    lines = (line for path in folder.glob("*.py") for line in path.read_text(encoding="utf-8").splitlines())
    return {line.split("=")[1].strip().strip("\"'") for line in lines if line.startswith("revision =")}


def api() -> list[Check]:
    """The server that is configured."""
    url = configured_api_url()
    if url is None:
        return [Check("PREFECT_API_URL", "note", "not set: `run` starts a server of its own, `up` one on 4200")]
    if healthy(url):
        return [Check("PREFECT_API_URL", "ok", url)]
    return [Check("PREFECT_API_URL", "note", f"nothing answers at {url}")]


def schedules() -> list[Check]:
    """Every active schedule on the configured server has runs to come: a broken scheduler is silent."""
    if (client := connected()) is None:
        return [Check("schedules", "note", "no server to ask; --deep tries a schedule on one of its own")]
    with client:
        deployments = client.request("POST", "/deployments/filter", json={}).json()
        scheduled = [d for d in deployments if not d["paused"] and any(s["active"] for s in d["schedules"])]
        findings = [_has_runs(client, deployment) for deployment in scheduled]
    return findings or [Check("schedules", "ok", "no deployment has an active one")]


def _has_runs(client: SyncPrefectClient, deployment: dict[str, Any]) -> Check:
    wanted = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    count = client.request("POST", "/flow_runs/count", json=wanted).json()
    name = deployment["name"]
    if count:
        return Check("schedules", "ok", f"{name}: {count} runs to come")
    age = datetime.now(UTC) - datetime.fromisoformat(deployment["updated"])
    if age < timedelta(seconds=SCHEDULER_SECONDS):
        return Check("schedules", "note", f"{name}: no runs yet; it was deployed {age.seconds} s ago")
    says = f"{name}: is scheduled, but has no runs to come. Does the server's log speak of its Scheduler?"
    return Check("schedules", "broken", says)


def a_schedule_makes_runs() -> list[Check]:
    """A cron schedule on a server of its own gets a run; half a minute."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "server.log"
        server = prefect_server(log, scheduled=True, environment={"PREFECT_HOME": folder})
        server.start()
        try:
            server.wait_ready(120.0, "/api/health")
            started = time.monotonic()
            with httpx.Client(base_url=f"{server.url}/api", timeout=30.0) as http:
                _schedule_something(http)
                wait_until(
                    lambda: http.post("/flow_runs/count", json={}).json() > 0,
                    SCHEDULER_SECONDS,
                    lambda: f"{SCHEDULER_SECONDS:.0f} s after a cron schedule was made there is no run",
                )
        except ServiceError as e:
            return [Check("scheduler", "broken", str(e).replace("\n", " | "))]
        finally:
            server.stop()
    return [Check("scheduler", "ok", f"a new schedule had its runs after {time.monotonic() - started:.0f} s")]


def _schedule_something(http: httpx.Client) -> None:
    flow = http.post("/flows/", json={"name": "doctor"}).raise_for_status().json()["id"]
    cron = {"active": True, "schedule": {"cron": "* * * * *", "timezone": "UTC"}}
    http.post("/deployments/", json={"name": "doctor", "flow_id": flow, "schedules": [cron]}).raise_for_status()


def connected() -> SyncPrefectClient | None:
    """A client of the configured server, to be used as a context; None when there is none or it does not answer.

    Never without an address: Prefect would start a server.
    """
    url = configured_api_url()
    if url is None or not healthy(url):
        return None
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def pages(client: SyncPrefectClient) -> str:
    """Where the server's pages begin."""
    return str(client.api_url).rstrip("/").removesuffix("/api")
