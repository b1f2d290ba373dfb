"""Child processes that never outlive their parent unless that is asked for, by portable means.

A child is told its parent's pid and leaves when that pid is no longer its parent (`exit_with_parent`). We do not ask
Linux for it (PDEATHSIG): that signal comes when the thread that forked ends, not the process.
Ports are bound here and handed over as an open socket: no race for a free port, and connections queue while the
child starts.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from crafter_pipeline.errors import ConfigError, ServiceError

PARENT_VARIABLE = "CRAFTER_PIPELINE_PARENT_PID"


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. ConfigError when the port is taken or the host is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host.strip("[]"), port))
    except OSError as e:
        sock.close()
        raise ConfigError(
            f"Cannot listen on {host}:{port} ({e.strerror}{_holder(port)}). "
            "Stop what runs there, or choose another --port."
        ) from e
    sock.listen(1024)
    return sock


def _holder(port: int) -> str:
    """Who listens on a TCP port of this machine, in words; empty where nobody does, or the system keeps it secret."""
    import psutil

    try:
        pids = {c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port}
        names = [f"process {pid}, {psutil.Process(pid).name()}" for pid in sorted(pids - {None})]
    except (psutil.Error, OSError):
        return ""
    return f": {'; '.join(names)}" if names else ""


def url_of(sock: socket.socket) -> str:
    """`http://host:port` of a listening socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def free_port() -> int:
    """A port of loopback that nobody listens on, for a process that cannot be handed a socket."""
    with listen("127.0.0.1", 0) as sock:
        return int(sock.getsockname()[1])


def exit_with_parent(poll_seconds: float = 1.0) -> None:
    """Called by a child at its start: SIGTERM to itself when the parent that started it is gone."""
    expected = int(os.environ.get(PARENT_VARIABLE, "0"))
    if not expected:
        return

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(poll_seconds)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watchdog", daemon=True).start()


class Service:
    """A process of ours as a child: started on entry, stopped on every way out.

    Args:
        name: For messages, e.g. "task app".
        module: Run as `python -m <module>`, with `--fd N` appended if it listens.
        arguments: Further command line arguments.
        log: File that takes the child's stdout and stderr.
        host, port: Where to listen; port 0 takes a free one, host None opens no socket.
        url: Where the child answers if it opens its own socket.
        environment: Variables on top of ours (secrets travel here, never on the command line).
        folder: Its working directory; None: ours.
        detached: It is to outlive us, so it is told of no parent. Who calls `start` cares for its end.
        keeps_port: The socket stays open until `stop`: a child that died is started again on the same port, and who
            calls in between waits in the queue instead of being refused.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        log: Path,
        host: str | None = "127.0.0.1",
        port: int = 0,
        url: str = "",
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        detached: bool = False,
        keeps_port: bool = False,
    ) -> None:
        self.name, self.module, self.arguments, self.log = name, module, list(arguments), log
        self.host, self.port, self.environment = host, port, dict(environment or {})
        self.folder, self.detached, self.keeps_port = folder, detached, keeps_port
        self.url = url
        self._socket: socket.socket | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def start(self) -> None:
        """Start without waiting; connections queue until the child accepts them."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        variables = {k: v for k, v in os.environ.items() if k != PARENT_VARIABLE} | self.environment
        if not self.detached:
            variables[PARENT_VARIABLE] = str(os.getpid())
        with ExitStack() as stack:
            descriptors: list[int] = []
            if self.host is not None:
                sock = self._socket or listen(self.host, self.port)
                if self.keeps_port:
                    self._socket = sock
                else:
                    stack.enter_context(sock)
                self.url, descriptors = url_of(sock), [sock.fileno()]
            log = stack.enter_context(self.log.open("ab"))
            handed = [word for fd in descriptors for word in ("--fd", str(fd))]
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, *self.arguments, *handed],
                pass_fds=descriptors,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=variables,
                cwd=self.folder,
                start_new_session=True,
            )

    def wait_ready(
        self, timeout_s: float = 60.0, path: str = "/livez", ready: Callable[[], bool] | None = None
    ) -> None:
        """Block until `path` answers 200, or `ready` says so. ServiceError with the log's tail when the child dies or
        stays silent."""

        def ready_or_dead() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise ServiceError(self._last_words(f"ended with exit code {self.process.returncode} at its start"))
            return ready() if ready is not None else self._answers(path)

        wait_until(ready_or_dead, timeout_s, lambda: self._last_words(f"gave no answer in {timeout_s:.0f} s"))

    def _answers(self, path: str) -> bool:
        try:
            return httpx.get(self.url + path, timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def _last_words(self, what: str) -> str:
        tail = tail_of(self.log)
        return f"The {self.name} {what}. Log: {self.log}" + (f"\n{tail}" if tail else "")

    def stop(self, grace_s: float = 10.0) -> None:
        """SIGTERM, then SIGKILL after `grace_s`. Safe to call twice."""
        if self.process is not None:
            stop_process(self.process, grace_s)
            self.process = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def stop_process(process: subprocess.Popen[bytes], grace_s: float = 10.0) -> None:
    """SIGTERM to the child's process group, SIGKILL after `grace_s`."""
    for sig, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, sig)
        except (ProcessLookupError, PermissionError):
            return
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            continue


def wait_until(ready: Callable[[], bool], timeout_s: float, complaint: Callable[[], str]) -> None:
    """Poll `ready` ten times a second; ServiceError(complaint()) after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise ServiceError(complaint())
        time.sleep(0.1)


def tail_of(path: Path, lines: int = 15, *, since: int = 0) -> str:
    """The last lines of a log file, of what was written behind its first `since` bytes; empty when there is none."""
    try:
        return "\n".join(path.read_bytes()[since:].decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
