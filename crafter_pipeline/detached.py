"""Processes that outlive the command that started them, and how to stop the right ones later.

Each has a file `<name>.json` in the state folder, with pid and start time: a pid alone may belong to another process by
now.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from crafter_pipeline.connections import project_root
from crafter_pipeline.files import write_whole
from crafter_pipeline.processes import Service
from crafter_pipeline.settings import load_settings


@dataclass(frozen=True, slots=True)
class Detached:
    """A process we started and left alone, or one that said it is there."""

    name: str
    pid: int
    started: str
    """As the system tells a process's start; opaque."""
    url: str
    log: str
    """Empty: it writes to the terminal where it was started."""

    @property
    def alive(self) -> bool:
        return start_of(self.pid) == self.started


def state_dir() -> Path:
    """CRAFTER_PIPELINE_STATE, else `.crafter` in the checkout."""
    settings = load_settings(project_root() / ".env")
    return project_root() / (settings.crafter_pipeline_state or ".crafter")


def start_detached(
    name: str,
    module: str,
    arguments: Sequence[str] = (),
    *,
    host: str | None = None,
    port: int = 0,
    url: str = "",
    environment: Mapping[str, str] | None = None,
    ready: Callable[[], bool] | None = None,
    timeout_s: float = 90.0,
) -> Detached:
    """Start `python -m <module>` in a session of its own and wait until it answers, or until `ready()`.

    Args:
        host: Listen here and hand the socket over as `--fd N`; None: the process has no socket of ours.
        url: Where it answers if it opens its own socket.
    """
    log = state_dir() / f"{name}.log"
    service = Service(
        name, module, arguments, log=log, host=host, port=port, url=url, environment=environment, detached=True
    )
    service.start()
    assert service.process is not None
    pid = service.process.pid
    made = Detached(name, pid, start_of(pid) or "", service.url, str(log))
    try:
        write_whole(state_dir() / f"{name}.json", json.dumps(asdict(made)))
        service.wait_ready(timeout_s, ready=ready)
    except BaseException:
        stop_detached(made)
        raise
    return made


@contextmanager
def registered(name: str) -> Iterator[None]:
    """This process among what runs until the block ends, so that others find it, and can stop it."""
    made = Detached(name, os.getpid(), start_of(os.getpid()) or "", "", "")
    write_whole(state_dir() / f"{name}.json", json.dumps(asdict(made)))
    try:
        yield
    finally:
        (state_dir() / f"{name}.json").unlink(missing_ok=True)


def detached() -> list[Detached]:
    """Everything that was started and not stopped, alive or not."""
    found = []
    for path in sorted(state_dir().glob("*.json")):
        try:
            found.append(Detached(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return found


def stop_detached(process: Detached, grace_s: float = 15.0) -> bool:
    """SIGTERM to it and to the group that it leads, SIGKILL after `grace_s`; its state file goes. True if it was
    alive."""
    was_alive = process.alive
    for sig, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        if not process.alive:
            break
        try:
            (os.killpg if os.getpgid(process.pid) == process.pid else os.kill)(process.pid, sig)
        except (ProcessLookupError, PermissionError):
            break
        deadline = time.monotonic() + wait_s
        while process.alive and time.monotonic() < deadline:
            _reap(process.pid)
            time.sleep(0.1)
    (state_dir() / f"{process.name}.json").unlink(missing_ok=True)
    return was_alive


def start_of(pid: int) -> str | None:
    """When a process started; None: there is none (a zombie is none)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except (ChildProcessError, OSError):
        pass
