"""Where a task app can run: a child of ours, a Docker container, Modal, or an address that somebody else serves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from crafter_pipeline.config import TaskAppConfig
from crafter_pipeline.container import build_image, container_arguments
from crafter_pipeline.environments import find_environment
from crafter_pipeline.errors import ConfigError, ServiceError
from crafter_pipeline.processes import free_port
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


def deploy_modal(
    environment: str,
    *,
    name: str,
    secret: str,
    mode: Literal["deploy", "serve"] = "deploy",
    dry_run: bool = False,
) -> dict[str, Any]:
    """Put a task app on Modal: {"name", "url"}. The function it runs is `task_app.modal_app`.

    Args:
        name: Of the Modal app; what is deployed under it is updated.
        secret: Name of the Modal secret with ENVIRONMENT_API_KEY and the keys of hosted models.
        mode: deploy: it stays; serve: it is there until this call is interrupted, which then returns.
        dry_run: Only say what would be deployed; needs no account.

    Raises ConfigError without an account or the secret, ServiceError when Modal fails; each says what to do.
    """
    app = find_environment(environment).app_names[0]
    do = "show" if dry_run else mode
    command = [sys.executable, "-m", "task_app.modal_app", do, "--app", app, "--name", name, "--secret", secret]
    if do == "serve":
        code = subprocess.run(command).returncode
        if code:
            raise (ConfigError if code == ConfigError.exit_code else ServiceError)(f"Serving {name} from Modal failed.")
        return {"name": name}
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        words = "".join(done.stderr.strip().splitlines()[-1:]).removeprefix("modal: ") or "no reason given"
        raise (ConfigError if done.returncode == ConfigError.exit_code else ServiceError)(words)
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told
