"""`up` and `down`: a Prefect server, every deployment of prefect.yaml, a worker.

`up` supervises in the foreground; `--background` starts that same command detached and waits until it is ready.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crafter_pipeline.cli.server import (
    DEFAULT_PORT,
    SERVER_SETTINGS,
    configured_api_url,
    healthy,
    prefect_server,
    python_path,
)
from crafter_pipeline.connections import project_root
from crafter_pipeline.detached import detached, start_detached, state_dir, stop_detached
from crafter_pipeline.errors import ConfigError, ServiceError
from crafter_pipeline.files import write_whole
from crafter_pipeline.processes import PARENT_VARIABLE, listen, stop_process, tail_of
from crafter_pipeline.settings import LOOPBACK_HOSTS

POOL = "crafter"
STACK = "stack"
START_SECONDS = 180.0


def up(*, background: bool) -> int:
    """Start everything; returns at Ctrl-C, or when ready in the background."""
    if not (project_root() / "prefect.yaml").exists():
        raise ConfigError(f"{project_root()} holds no prefect.yaml. Call `up` from a checkout of the project.")
    running = next((d for d in detached() if d.name == STACK and d.alive), None)
    if running is not None:
        print(f"The stack is up already (process {running.pid}, log {running.log}). `crafter-pipeline down` stops it.")
        return 0
    if not background:
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
    """Run the stack in this process until it is told to stop, or a part of it ends."""
    log = state_dir()
    log.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        api_url, ours = _where()
        if ours:
            address = urlsplit(api_url)
            server = prefect_server(
                log / "prefect-server.log",
                host=address.hostname or "127.0.0.1",
                port=address.port or DEFAULT_PORT,
                private=False,
            )
            server.start()
            stack.callback(server.stop)
            server.wait_ready(START_SECONDS, "/api/health")
        said = [f"Prefect at {api_url.removesuffix('/api')}{'' if ours else ' (was running)'}"]
        said += stack.enter_context(_profile(api_url))
        os.environ.update(SERVER_SETTINGS | {"PREFECT_API_URL": api_url, "PYTHONPATH": python_path()})
        _make_pool()
        said.append(_deploy())
        worker = stack.enter_context(_worker(log / "worker.log"))
        said.append(f"Worker for pool {POOL} (log {log / 'worker.log'})")
        said.append("Ready: prefect deployment run crafter-pipeline")
        write_whole(_ready_file(), "\n".join(said) + "\n")
        stack.callback(_ready_file().unlink, missing_ok=True)
        print("\n".join(said), flush=True)
        while worker.poll() is None and (not ours or (server.process and server.process.poll() is None)):
            time.sleep(0.5)
        raise ServiceError(f"A part of the stack ended.\n{tail_of(log / 'worker.log')}")


def down() -> int:
    """Stop what was left running; undo the profile change."""
    change = _profile_change()  # the stack takes it back itself when it stops in good order
    stopped = [d for d in detached() if stop_detached(d)]
    _ready_file().unlink(missing_ok=True)
    _undo_profile()
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


def _make_pool() -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
        except ObjectAlreadyExists:
            pass


def _deploy() -> str:
    answer = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=project_root(),
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise ServiceError(f"Deploying prefect.yaml failed:\n{answer.stdout[-2000:]}{answer.stderr[-2000:]}")
    return f"Deployed the flows of {project_root() / 'prefect.yaml'}"


@contextmanager
def _worker(log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "crafter_pipeline.cli.worker", POOL],
            cwd=project_root(),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | {PARENT_VARIABLE: str(os.getpid())},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop_process(process, grace_s=20.0)


# --------------------------------------------------------------------------- the profile


@contextmanager
def _profile(api_url: str) -> Iterator[list[str]]:
    """Name the server in the active profile while the stack is up, unless the user has named one. Yields what to say.

    With it, and with plugins enabled, `prefect deployment run crafter-pipeline` works in any shell and folder.
    """
    from prefect.settings import load_profiles, save_profiles

    profiles = load_profiles(include_defaults=True)
    profile = profiles.active_profile
    said = []
    if profile is not None:
        wanted = {"PREFECT_API_URL": api_url, "PREFECT_PLUGINS_ENABLED": "true"}
        known = {setting.name for setting in profile.settings}
        missing = {name: value for name, value in wanted.items() if name not in known}
        if missing:
            write_whole(_profile_file(), json.dumps({"profile": profile.name, "settings": missing}))
            profiles.update_profile(profile.name, missing)  # type: ignore[arg-type]
            save_profiles(profiles)
        said = [f"Set {name}={value} in the Prefect profile {profile.name!r}" for name, value in missing.items()]
    try:
        yield said
    finally:
        _undo_profile()


def _profile_change() -> dict[str, Any] | None:
    try:
        change: dict[str, Any] = json.loads(_profile_file().read_text())
    except (OSError, ValueError):
        return None
    return change


def _undo_profile() -> None:
    """Take back what `_profile` set, where it still has that value."""
    change = _profile_change()
    if change is None:
        return
    from prefect.settings import load_profiles, save_profiles

    profiles, name = load_profiles(include_defaults=True), change["profile"]
    if name in profiles.names:
        now = {setting.name: str(value) for setting, value in profiles[name].settings.items()}
        ours = {k: None for k, v in change["settings"].items() if now.get(k, "").lower() == v.lower()}
        profiles.update_profile(name, ours)  # type: ignore[arg-type]
        save_profiles(profiles)
    _profile_file().unlink(missing_ok=True)


def _profile_file() -> Path:
    return state_dir() / "profile-change.json"


def _ready_file() -> Path:
    return state_dir() / "stack.ready"


def _main() -> int:
    """The detached half of `up --background`."""
    import signal

    def stop(number: int, frame: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    return supervise()


if __name__ == "__main__":
    sys.exit(_main())
