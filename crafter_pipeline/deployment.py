"""Where a task app can run: a child of ours, a Docker container, Modal, or an address that somebody else serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crafter_pipeline.config import TaskAppConfig
from crafter_pipeline.container import build_image, container_arguments
from crafter_pipeline.environments import find_environment
from crafter_pipeline.errors import ConfigError, ServiceError
from crafter_pipeline.processes import PARENT_VARIABLE, free_port
from crafter_pipeline.settings import LOOPBACK_HOSTS


def is_local(url: str) -> bool:
    """Whether an address is of this machine's loopback; of a comma list: each one."""
    ours = {host.strip("[]") for host in LOOPBACK_HOSTS}
    return all((urlsplit(one.strip()).hostname or "") in ours for one in url.split(","))


def replica_name(name: str, number: int) -> str:
    """What one of several is called: task app, task app 2, …

    Args:
        number: From 0 on.
    """
    return name if number == 0 else f"{name} {number + 1}"


def task_app_arguments(environment: str, trace_dir: Path) -> list[str]:
    """Command line of a task app."""
    return [find_environment(environment).app_names[0], "--trace", str(trace_dir)]


def task_app_process(config: TaskAppConfig, environment: str, traces: Path, log: Path, port: int = 0) -> dict[str, Any]:
    """How a task app of runtime uvicorn or docker is started: `module`, `arguments` and where it listens, as
    `Service` and `start_detached` take them. Docker: builds the image first, its output goes to `log`.

    `port`: 0 takes a free one.
    """
    if config.runtime != "docker":
        arguments = task_app_arguments(environment, traces)
        return {"module": "task_app", "arguments": arguments, "host": "127.0.0.1", "port": port}
    port = port or free_port()  # a container opens its own socket
    app = find_environment(environment).app_names[0]
    arguments = container_arguments(app, build_image(log, config.image), traces, port)
    return {
        "module": "crafter_pipeline.container",
        "arguments": arguments,
        "host": None,
        "url": f"http://127.0.0.1:{port}",
    }


def deploy_modal(environment: str, *, name: str, secret: str, dry_run: bool = False) -> dict[str, Any]:
    """Put a task app on Modal, where it stays: {"name", "url"}. The function it runs is `task_app.modal_app`.

    Args:
        name: Of the Modal app; what is deployed under it is updated.
        secret: Name of the Modal secret with ENVIRONMENT_API_KEY and the keys of hosted models.
        dry_run: Only say what would be deployed; needs no account.

    Raises ConfigError without an account or the secret, ServiceError when Modal fails; each says what to do.
    """
    done = subprocess.run(
        _modal_command("show" if dry_run else "deploy", environment, name, secret), capture_output=True, text=True
    )
    if done.returncode != 0:
        raise _modal_failure(done.returncode, done.stderr)
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def serve_modal(environment: str, *, name: str, secret: str, serving: Callable[[str], None]) -> None:
    """Serve a task app from Modal until this is interrupted; `serving` is called with its address. Errors as above."""
    variables = os.environ | {PARENT_VARIABLE: str(os.getpid())}
    command = _modal_command("serve", environment, name, secret)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=variables, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        last_words: list[str] = []
        listening = threading.Thread(target=_echo, args=(process.stderr, last_words), daemon=True)
        listening.start()
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    serving(str(json.loads(line)["url"]))
            code = process.wait()
        except KeyboardInterrupt:  # it got the signal as well, and takes its app down
            process.wait()
            return
        except BaseException:
            process.terminate()
            raise
        listening.join()
        if code:
            raise _modal_failure(code, "".join(last_words))


def _echo(lines: Iterable[str], last: list[str]) -> None:
    """Show what Modal says of its work; what it said last is kept instead, for it may be why it failed."""
    for line in lines:
        if last:
            sys.stderr.write(last.pop())
        last.append(line)


def _modal_command(do: str, environment: str, name: str, secret: str) -> list[str]:
    app = find_environment(environment).app_names[0]
    return [sys.executable, "-m", "task_app.modal_app", do, "--app", app, "--name", name, "--secret", secret]


def _modal_failure(code: int, stderr: str) -> ConfigError | ServiceError:
    words = "".join(stderr.strip().splitlines()[-1:]).removeprefix("modal: ") or "Modal gave no reason."
    return (ConfigError if code == ConfigError.exit_code else ServiceError)(words)
