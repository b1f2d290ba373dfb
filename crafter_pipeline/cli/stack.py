"""`up` and `down`: a Prefect server, every deployment of prefect.yaml, a worker.

`up` supervises in the foreground; `--background` starts that same command detached and waits until it is ready.
A server that is configured and answers is used as it is: never started, stopped or changed but for our own pool, limit
and deployments.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from crafter_pipeline.cli import profile
from crafter_pipeline.cli.dead_runs import crash_dead_runs
from crafter_pipeline.cli.deployments import POOL
from crafter_pipeline.cli.server import (
    DEFAULT_PORT,
    RUN_FILES,
    configured_api_url,
    healthy,
    prefect_server,
    prefect_variables,
    python_path,
)
from crafter_pipeline.cli.supervision import Part, watch
from crafter_pipeline.connections import project_root
from crafter_pipeline.detached import detached, registered, start_detached, state_dir, stop_detached
from crafter_pipeline.errors import ConfigError, ServiceError
from crafter_pipeline.files import write_whole
from crafter_pipeline.processes import Service, listen, tail_of, wait_until
from crafter_pipeline.settings import LOOPBACK_HOSTS, Settings, load_settings

STACK = "stack"
WORKER = f"{POOL}-up-{socket.gethostname()}"
"""Machines of a team may work for one server; workers of one name would be taken for each other."""
SERVER_LOG, WORKER_LOG, DEPLOY_LOG = "prefect-server.log", "worker.log", "deploy.log"
START_SECONDS = 180.0
RUN_SECONDS, STOP_SECONDS = 10.0, 20.0
"""For runs, and for parts of the stack, that are told to stop."""


def up(*, background: bool) -> int:
    """Start everything; returns at Ctrl-C, or when ready in the background."""
    if not (project_root() / "prefect.yaml").exists():
        raise ConfigError(f"{project_root()} holds no prefect.yaml. Call `up` from a checkout of the project.")
    running = next((d for d in detached() if d.name == STACK and d.alive), None)
    if running is not None:
        where = f"log {running.log}" if running.log else "in a terminal"
        print(f"The stack is up already (process {running.pid}, {where}). `crafter-pipeline down` stops it.")
        return 0
    if not background:
        with registered(STACK):
            return supervise()
    _where()  # an occupied port is said here, not in a log
    _ready_file().unlink(missing_ok=True)
    made = start_detached(
        STACK,
        "crafter_pipeline.cli.stack",
        environment={"PYTHONPATH": python_path()},
        ready=lambda: _ready_file().exists(),
        timeout_s=START_SECONDS,
    )
    print(_ready_file().read_text().rstrip())
    print(f"Running in the background (process {made.pid}, log {made.log}). `crafter-pipeline down` stops it.")
    return 0


def supervise() -> int:
    """Run the stack in this process until it is told to stop, or a part of it dies too often.

    Server, deployments and worker start at once: calls wait at the server's socket until it takes them.
    """
    logs = state_dir()
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        api_url, ours = _where()
        os.environ.update(_variables(api_url, ours=ours))
        server, deployment, worker = _server(api_url, logs), _deployment(logs), _worker(logs)
        parts = [server, worker] if ours else [worker]
        started = time.time()
        for service in (*parts, deployment):
            stack.callback(_stop_with_runs, service)
            service.start()
        said = stack.enter_context(profile.named_in_profile(api_url))
        if ours:
            server.wait_ready(START_SECONDS, "/api/health")
        _await_deployed(deployment)
        worker.wait_ready(START_SECONDS, ready=lambda: _worker_is_online(since=started))
        said += [*_links(api_url, logs, ours=ours), "Ready: prefect deployment run crafter-pipeline"]
        write_whole(_ready_file(), "\n".join(said) + "\n")
        stack.callback(_ready_file().unlink, missing_ok=True)
        print("\n".join(said), flush=True)
        watch([Part(service) for service in parts], _say, _see_to_runs if ours else lambda: None)
    return 0


def down() -> int:
    """Stop what was left running; undo the profile change."""
    change = profile.change()  # the stack takes it back itself when it stops in good order
    stopped = [d for d in detached() if stop_detached(d, grace_s=3 * STOP_SECONDS)]
    _ready_file().unlink(missing_ok=True)
    profile.undo_change()
    for process in stopped:
        print(f"Stopped {process.name} (process {process.pid}).")
    if change:
        names = " and ".join(change["settings"])
        print(f"Took {names} back out of the Prefect profile {change['profile']!r}.")
    if not stopped:
        print("Nothing was running.")
    return 0


# --------------------------------------------------------------------------- parts


def _where() -> tuple[str, bool]:
    """(API address, whether we are to start it). ConfigError when the address belongs to something else."""
    configured = configured_api_url()
    api_url = configured or f"http://127.0.0.1:{DEFAULT_PORT}/api"
    if healthy(api_url):
        return api_url, False
    address = urlsplit(api_url)
    if address.scheme != "http" or (address.hostname or "") not in LOOPBACK_HOSTS:
        raise ServiceError(f"No Prefect server answers at {api_url}. Start it, or unset PREFECT_API_URL.")
    port = address.port or DEFAULT_PORT
    try:
        listen(address.hostname or "127.0.0.1", port).close()
    except ConfigError:
        raise ConfigError(
            f"Port {port} is taken by something that is not Prefect. Stop it, or choose another port: "
            f"PREFECT_API_URL=http://127.0.0.1:{port + 1}/api crafter-pipeline up"
        ) from None
    return api_url, True


def _server(api_url: str, logs: Path) -> Service:
    address = urlsplit(api_url)
    return prefect_server(
        logs / SERVER_LOG,
        host=address.hostname or "127.0.0.1",
        port=address.port or DEFAULT_PORT,
        scheduled=True,
        run_files=_runs(),
    )


def _deployment(logs: Path) -> Service:
    return Service(
        "deployment of prefect.yaml",
        "crafter_pipeline.cli.deployments",
        [],
        log=logs / DEPLOY_LOG,
        host=None,
        folder=project_root(),
    )


def _worker(logs: Path) -> Service:
    return Service(
        "worker",
        "crafter_pipeline.cli.worker",
        [POOL, WORKER],
        log=logs / WORKER_LOG,
        host=None,
        folder=project_root(),
    )


def _stop_with_runs(service: Service) -> None:
    """Stop a part; the runs of a worker first, so that they end in good order and say so to the server. They are
    process groups of their own, and a worker that is stopped kills them without a word."""
    process = service.process
    runs = psutil.Process(process.pid).children() if process is not None and process.poll() is None else []
    for run in runs:
        with suppress(psutil.NoSuchProcess):
            run.terminate()
    _, left = psutil.wait_procs(runs, timeout=RUN_SECONDS)
    service.stop(STOP_SECONDS)
    for run in left:
        with suppress(psutil.NoSuchProcess):
            run.kill()


def _variables(api_url: str, *, ours: bool) -> dict[str, str]:
    """What our children find in their environment: the server, the project's settings, our packages, the folders."""
    found = prefect_variables() | {"PREFECT_API_URL": api_url, "PYTHONPATH": python_path()}
    found |= {"CRAFTER_PIPELINE_STATE": str(state_dir()), "CRAFTER_PIPELINE_RUNS": str(_runs())}
    if ours and _settings().crafter_pipeline_runs_url is None:
        found["CRAFTER_PIPELINE_RUNS_URL"] = _pages(api_url) + RUN_FILES
    return found


def _settings() -> Settings:
    """As the worker sees them, wherever `up` is called."""
    return load_settings(project_root() / ".env")


def _runs() -> Path:
    return project_root() / _settings().crafter_pipeline_runs


def _pages(api_url: str) -> str:
    return api_url.rstrip("/").removesuffix("/api")


def _await_deployed(deployment: Service) -> None:
    process = deployment.process
    assert process is not None
    wait_until(
        lambda: process.poll() is not None,
        START_SECONDS,
        lambda: f"Deploying prefect.yaml takes longer than {START_SECONDS:.0f} s. Log: {deployment.log}",
    )
    if process.returncode:
        raise ServiceError(f"Deploying prefect.yaml failed. Log: {deployment.log}\n{tail_of(deployment.log, 30)}")


def _worker_is_online(since: float) -> bool:
    """Whether our worker has told the server that it is there, since we started it."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        answer = client.request(
            "POST", "/work_pools/{work_pool_name}/workers/filter", path_params={"work_pool_name": POOL}, json={}
        )
    seen = [datetime.fromisoformat(w["last_heartbeat_time"]) for w in answer.json() if w["name"] == WORKER]
    return any(heartbeat.timestamp() >= since for heartbeat in seen)


def _links(api_url: str, logs: Path, *, ours: bool) -> list[str]:
    """What there is to see, a line each."""
    pages = _pages(api_url)
    lines = [f"Prefect at {pages} ({f'log {logs / SERVER_LOG}' if ours else 'was running'})"]
    lines.append(f"Deployments: {pages}/deployments")
    if ours:
        lines.append(f"Run folders: {pages}{RUN_FILES}/")
    return [*lines, f"Worker for pool {POOL} (log {logs / WORKER_LOG})"]


def _see_to_runs() -> None:
    try:
        for name in crash_dead_runs(POOL):
            _say(f"The process of flow run {name} is gone: it counts as crashed now")
    except Exception as e:  # the server is being started again; the next time will do
        _say(f"Flow runs were not looked at: {type(e).__name__}: {e}")


def _say(text: str) -> None:
    print(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}", flush=True)


def _ready_file() -> Path:
    return state_dir() / "stack.ready"


def _main() -> int:
    """The detached half of `up --background`."""

    def stop(number: int, frame: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    try:
        return supervise()
    except ServiceError as e:
        print(e, file=sys.stderr)
        return e.exit_code


if __name__ == "__main__":
    sys.exit(_main())
