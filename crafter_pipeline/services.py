"""The two services of a run: children of the flow that owns them, or addresses of ones that run already.

Keys are minted here for children, handed over by the environment alone, and forgotten with them.
A child that ends in mid-run takes the others along: a stage then fails within seconds (`ServiceGone`), instead of
every seed and job knocking until its retries are used up. Of several task apps the others go on until the last one.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crafter_pipeline import connections
from crafter_pipeline.config import PipelineConfig
from crafter_pipeline.container import require_docker, shares_network
from crafter_pipeline.deployment import deploy_modal, is_local, replica_name, task_app_process
from crafter_pipeline.errors import ConfigError, ServiceError
from crafter_pipeline.files import write_whole
from crafter_pipeline.processes import Service, listen
from crafter_pipeline.progress import progress
from crafter_pipeline.runs import Run
from crafter_pipeline.settings import load_settings, reveal

WATCH_SECONDS = 0.5
KNOCK_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a run finds its services."""

    task_app_url: str
    """A comma list where several task apps share the rollouts."""
    backend_url: str
    public_url: str | None = None
    """The backend as the task app sees it; None: as we do."""
    imports: Path | None = None
    """Where traces of a task app go that does not write them there itself; None: it does."""

    @property
    def inference_url(self) -> str:
        """Base URL of the backend's chat models, for the task app."""
        return connections.inference_url(self.public_url or self.backend_url)


@contextmanager
def services(run: Run) -> Iterator[Addresses]:
    """Start what the config wants started, both at once; stop it on every way out. What is on Modal stays there.

    Call it in a flow's body, in the thread that lives as long as the services shall: never in a task.
    """
    config, settings = run.config, load_settings()
    ours = config.task_app.runtime in ("uvicorn", "docker")
    task_app_url = backend_url = ""
    if config.backend.runtime == "url":
        backend_url = connections.backend_address(config.backend.url)
    if config.task_app.runtime == "url":
        task_app_url = connections.task_app_address(config.task_app.url)
    check_reach(config, task_app_url, backend_url)
    # The services ask each other: where one of them is not ours, both keep to keys that were agreed on.
    minted = ours and config.backend.runtime == "local"
    keys = {
        "ENVIRONMENT_API_KEY": _key(minted, reveal(settings.environment_api_key)),
        "SYNTH_API_KEY": _key(minted, reveal(settings.synth_api_key)),
    }
    if config.backend.public_url is not None and keys["SYNTH_API_KEY"] is None:
        raise ConfigError(
            "backend.public_url needs SYNTH_API_KEY: the task app that calls it from afar has to know it."
        )
    if config.task_app.runtime == "modal":
        task_app_url = _on_modal(config, keys["ENVIRONMENT_API_KEY"])
    environment = {name: key for name, key in keys.items() if key}
    started: list[Service] = []
    with ExitStack() as stack:

        def start(service: Service) -> str:
            service.start()
            stack.callback(service.stop)
            started.append(service)
            stack.callback(connections.forget, service.url)
            return service.url

        # The backend first: it outlives the task app, which calls it until its last rollout ends.
        if config.backend.runtime == "local":
            backend_url = start(_backend(run, environment))
        seen_url = config.backend.public_url or backend_url
        if ours:
            told = environment | {"BACKEND_BASE_URL": seen_url}
            task_app_url = ",".join(start(_task_app(run, told, n)) for n in range(config.task_app.replicas))
        for url, name in ((task_app_url, "ENVIRONMENT_API_KEY"), (backend_url, "SYNTH_API_KEY")):
            if key := environment.get(name):
                for address in url.split(","):
                    connections.remember_key(address, key)
        ports = {service.name: int(service.url.rsplit(":", 1)[1]) for service in started}
        write_whole(run.folder / "ports.json", json.dumps(ports))
        for service in started:
            service.wait_ready()
        stack.enter_context(_watched(started))
        writes_here = ours or (config.task_app.trace_dir is not None and is_local(task_app_url))
        imports = None if writes_here else run.traces
        yield Addresses(task_app_url, backend_url, config.backend.public_url, imports)


def check_reach(config: PipelineConfig, task_app_url: str, backend_url: str) -> None:
    """The task app asks the backend's models, and the backend plays through the task app: where one of them is on this
    machine's loopback, the other one has to be its neighbour. ConfigError when it cannot be, else a note."""
    runtime, backend = config.task_app.runtime, config.backend
    if backend.runtime == "url" and not is_local(backend_url):
        if runtime in ("uvicorn", "docker") or (runtime == "url" and is_local(task_app_url)):
            raise ConfigError(
                f"The training backend at {backend_url} cannot reach a task app on 127.0.0.1, and plays through it. "
                "Deploy the task app (task_app.runtime=modal), or name an address that the backend reaches "
                "(task_app.runtime=url, TASK_APP_URL)."
            )
        return
    if backend.public_url is not None:
        return
    remedy = (
        "Set backend.public_url to an address of it that the task app can reach (a tunnel, this machine's name), "
        "and backend.port to the port behind it."
        if backend.runtime == "local"
        else "Set BACKEND_BASE_URL to a backend that the task app can reach."
    )
    if runtime == "modal" or (runtime == "docker" and not shares_network()):
        raise ConfigError(f"The task app (runtime {runtime}) cannot reach a training backend on 127.0.0.1. {remedy}")
    if runtime == "url" and not is_local(task_app_url):
        progress().note(f"{task_app_url} may not reach the training backend on 127.0.0.1. {remedy}")


def _on_modal(config: PipelineConfig, key: str | None) -> str:
    if key is None:
        raise ConfigError(
            "runtime modal needs ENVIRONMENT_API_KEY: the same key as in the Modal secret "
            f"{config.task_app.modal_secret!r}."
        )
    progress().note(f"Deploying {config.task_app.modal_name} to Modal; the first time its image takes minutes.")
    wanted = config.task_app
    return str(deploy_modal(config.environment, name=wanted.modal_name, secret=wanted.modal_secret)["url"])


class ServiceGone(ServiceError):
    """A service ended while a stage needed it."""

    def __init__(self, message: str, *, ours: bool, url: str) -> None:
        super().__init__(message)
        self.ours = ours
        """A child of this run never comes back; what somebody else runs may be started again."""
        self.url = url
        """Which one, as the stage names it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(ServiceGone, ours=self.ours, url=self.url), self.args  # comes home from worker processes


@contextmanager
def needing(*urls: str) -> Iterator[None]:
    """A ServiceError of the block becomes ServiceGone when one of the services at `urls` is gone."""
    try:
        yield
    except ServiceError as e:
        for url in urls:
            if why := _ended.get(urlsplit(url).netloc):
                raise ServiceGone(why, ours=True, url=url) from e
            if refuses(url):
                where = urlsplit(url).netloc
                why = f"Nothing answers at {where} any more. Start it again and rerun."
                raise ServiceGone(why, ours=False, url=url) from e
        raise


def refuses(url: str) -> bool:
    """Whether nothing listens there. A host that is slow or filtered counts as there."""
    address = urlsplit(url)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), KNOCK_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError):
        return False
    return False


_ended: dict[str, str] = {}
"""host:port of this process's children -> why there is nothing any more."""
_children: set[str] = set()
"""host:port of this process's children."""


def is_child(url: str) -> bool:
    """Whether the service at `url` is a child of this process, and ends with it."""
    return urlsplit(url).netloc in _children


@contextmanager
def _watched(children: Sequence[Service]) -> Iterator[None]:
    """When a child ends by itself, say so in `_ended`; stop the others, unless another replica of it lives."""
    over = threading.Event()
    places = {child: urlsplit(child.url).netloc for child in children}

    def watch() -> None:
        living = list(children)
        while not over.wait(WATCH_SECONDS):
            for child in list(living):
                if child.process is None or (code := child.process.poll()) is None:
                    continue
                living.remove(child)
                ended = f"The {child.name} ended in mid-run (exit code {code}); its log is {child.log}."
                if any(other.module == child.module for other in living):
                    _ended[places[child]] = ended
                    progress().note(f"{ended} The others play its seeds.")
                    continue
                _ended.update(dict.fromkeys(places.values(), f"{ended} The same command goes on from here."))
                for other in living:
                    other.stop()
                return

    thread = threading.Thread(target=watch, name="services-watchdog", daemon=True)
    thread.start()
    _children.update(places.values())
    try:
        yield
    finally:
        over.set()
        thread.join(30.0)
        _children.difference_update(places.values())
        for place in places.values():
            _ended.pop(place, None)


def _task_app(run: Run, environment: dict[str, str], number: int) -> Service:
    """The task app, or one of several: they share the folder of traces, each writes a database of its own."""
    config = run.config
    name = replica_name("task app", number)
    log = run.logs / f"{name.replace(' ', '_')}.log"
    if config.task_app.runtime == "docker" and number == 0:
        require_docker()
        if config.task_app.image is None:
            progress().note(f"Building the task app's image; the first time that takes minutes. Log: {log}")
    port = config.task_app.port + number if config.task_app.port else _last_port(run, name)
    process = task_app_process(config.task_app, config.environment, run.traces, log, port)
    return Service(name, **process, log=log, environment=environment)


def _backend(run: Run, environment: dict[str, str]) -> Service:
    config = run.config.backend
    public = ["--public-url", config.public_url] if config.public_url is not None else []
    return Service(
        "training backend",
        "train_app",
        ["--data", str(run.backend_data), *public],
        log=run.logs / "backend.log",
        port=config.port or _last_port(run, "training backend"),
        environment=environment,
    )


def _last_port(run: Run, name: str) -> int:
    """The port of the run's last start if it is free, else 0: a resumed RL job still knows the task app by it."""
    try:
        port = int(json.loads((run.folder / "ports.json").read_text())[name])
        sock: socket.socket = listen("127.0.0.1", port)
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return 0
    sock.close()
    return port


def _key(minted: bool, from_settings: str | None) -> str | None:
    """A key for this run alone, or for a service that is not ours the one from the settings."""
    return secrets.token_urlsafe(24) if minted else from_settings
