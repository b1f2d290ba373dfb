"""What runs: the stack, task apps that were left running, flow runs; each with its log or its page."""

from __future__ import annotations

from crafter_pipeline.cli.doctor.check import Check
from crafter_pipeline.cli.doctor.prefect import connected, pages
from crafter_pipeline.detached import Detached, detached, state_dir

ACTIVE = ("RUNNING", "PENDING", "PAUSED", "CANCELLING")
SHOWN_RUNS = 20


def processes() -> list[Check]:
    """The stack with the logs of its parts, and everything else that stays until `crafter-pipeline down`."""
    found = [_process(process) for process in detached()]
    if any(process.name == "stack" and process.alive for process in detached()):
        found += [Check("running", "ok", f"log {log}") for log in sorted(state_dir().glob("*.log"))]
    return found or [Check("running", "ok", "nothing was left running by `up` or `deploy-task-app`")]


def flow_runs() -> list[Check]:
    """Flow runs that are under way on the configured server."""
    if (client := connected()) is None:
        return []
    wanted = {"flow_runs": {"state": {"type": {"any_": ACTIVE}}}, "sort": "START_TIME_DESC", "limit": SHOWN_RUNS}
    with client:
        runs = client.request("POST", "/flow_runs/filter", json=wanted).json()
        return [
            Check(
                "running",
                "ok",
                f"flow run {run['name']}: {run['state_name']}"
                + (f" since {run['start_time'][:19].replace('T', ' ')} UTC" if run["start_time"] else "")
                + f", {pages(client)}/runs/flow-run/{run['id']}",
            )
            for run in runs
        ]


def _process(process: Detached) -> Check:
    where = "".join(f", {what}" for what in (process.url, f"log {process.log}" if process.log else "") if what)
    if process.alive:
        return Check("running", "ok", f"{process.name}: process {process.pid}{where}")
    return Check("running", "note", f"{process.name}: ended by itself{where}. `crafter-pipeline down` forgets it")
