"""Flow runs that count as running although their process is gone: flow and worker were killed together, or the machine
went down. Nothing else tells Prefect, and the next run of their deployment would wait for their slot.

A run knows its process by the pid alone, so this is for a server that only this machine's workers can reach."""

from __future__ import annotations

from typing import Any

import psutil

STATES = ["RUNNING", "PAUSED", "CANCELLING"]


def crash_dead_runs(pool: str) -> list[str]:
    """Set every run of a pool of processes whose process is not there any more to Crashed, and its subflows with it.
    Returns their names."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas import State
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter, WorkPoolFilterName
    from prefect.states import Crashed

    under_way = {"state": {"type": {"any_": STATES}}}
    names = []
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(under_way),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        )
        for run in runs:
            if not is_gone(run.infrastructure_pid):
                continue
            why: State[Any] = Crashed(message="Its process is gone. The same config goes on from what is done.")
            parts = FlowRunFilter.model_validate(under_way | {"parent_flow_run_id": {"any_": [run.id]}})
            for part in client.read_flow_runs(flow_run_filter=parts):
                client.set_flow_run_state(part.id, why, force=True)
            client.set_flow_run_state(run.id, why, force=True)
            names.append(run.name)
    return names


def is_gone(infrastructure_pid: str | None) -> bool:
    """Whether a run's process has been and is not any more; its pid may be another's by now."""
    if infrastructure_pid is None or not infrastructure_pid.isdigit():
        return False
    try:
        process = psutil.Process(int(infrastructure_pid))
        return process.status() == psutil.STATUS_ZOMBIE or not any("prefect" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return True
