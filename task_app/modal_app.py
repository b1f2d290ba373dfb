"""The task app on Modal.

    python -m task_app.modal_app deploy --app grpo-crafter --name crafter-task-app   stays until `modal app stop`
    python -m task_app.modal_app serve  …                                            as long as the command runs
    python -m task_app.modal_app show   …                                            what would be deployed; no account

Each prints one line of JSON with what it did; `deploy` and `serve` say the `url`. Keys are never sent from here: they
stand in a Modal secret, which is named. Rollouts are written to the container's own disk, since SQLite and network
volumes do not go together, and copied to the volume every minute and at the end; what is on the volume is the ledger.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import signal
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import requires
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import modal
import modal.exception
from fastapi import FastAPI

from crafter_pipeline.config import load_toml
from crafter_pipeline.connections import project_root
from crafter_pipeline.environments import find_environment
from crafter_pipeline.errors import ConfigError, PipelineError, ServiceError
from crafter_pipeline.processes import exit_with_parent
from crafter_pipeline.settings import load_settings
from crafter_pipeline.traces.connect import written_at
from crafter_pipeline.traces.store import default_trace_path
from task_app.app import make_app

if TYPE_CHECKING:
    from starlette.types import Lifespan

FUNCTION = "task_app"
TRACES = Path("/traces")
LOCAL_TRACES = Path("/tmp/traces")
CONSTRAINTS = "/constraints.txt"
PACKAGES = ("crafter_pipeline", "task_app")
COPY_SECONDS = 60.0
MAX_INPUTS = 1000
"""Requests at once: rollouts wait for models, and live in one event loop."""
TIMEOUT_S = 3600
"""The longest rollout."""
IDLE_SECONDS = 300
"""Of a container without requests."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is deployed."""

    app: str = "grpo-crafter"
    """Environment, as the task app names it."""
    name: str = "crafter-task-app"
    """Of the Modal app."""
    secret: str = "crafter-pipeline"
    """Modal secret with ENVIRONMENT_API_KEY and the keys of hosted models."""
    volume: str = "crafter-pipeline-traces"
    """Modal volume for trace databases; made if it is not there."""
    python: str = field(default_factory=lambda: f"{sys.version_info.major}.{sys.version_info.minor}")
    """Ours: the function travels pickled."""
    requirements: tuple[str, ...] = field(default_factory=lambda: core_requirements())


def core_requirements() -> tuple[str, ...]:
    """What the core needs, without extras: of the checkout, else of the installed package."""
    project = project_root() / "pyproject.toml"
    if project.is_file():
        return tuple(load_toml(project)["project"]["dependencies"])
    return tuple(r for r in requires("crafter-pipeline") or () if "extra ==" not in r)


def modal_image(plan: Plan) -> modal.Image:
    """The image: the core's dependencies, then our packages with their data files."""
    image, options = modal.Image.debian_slim(python_version=plan.python), ""
    constraints = project_root() / "constraints.txt"
    if constraints.is_file():
        image = image.add_local_file(constraints, CONSTRAINTS, copy=True)
        options = f"--constraint {CONSTRAINTS}"
    return image.pip_install(*plan.requirements, extra_options=options).add_local_python_source(
        *PACKAGES, ignore=["**/__pycache__/**"]
    )


def modal_app(plan: Plan) -> tuple[modal.App, modal.Function]:
    """The Modal app, not deployed, and its web function: in one container, so that there is one ledger."""
    app = modal.App(plan.name, image=modal_image(plan), include_source=False)
    environment = plan.app

    @app.function(
        name=FUNCTION,
        serialized=True,
        secrets=[modal.Secret.from_name(plan.secret, required_keys=["ENVIRONMENT_API_KEY"])],
        volumes={str(TRACES): modal.Volume.from_name(plan.volume, create_if_missing=True)},
        max_containers=1,
        scaledown_window=IDLE_SECONDS,
        timeout=TIMEOUT_S,
    )
    @modal.concurrent(max_inputs=MAX_INPUTS)
    @modal.asgi_app()
    def serve() -> Any:
        from task_app.modal_app import hosted_app

        return hosted_app(environment)

    return app, serve


# --------------------------------------------------------------------------- inside the container


def hosted_app(
    app: str, *, traces: Path = TRACES, local: Path = LOCAL_TRACES, copy_seconds: float = COPY_SECONDS
) -> FastAPI:
    """The task app as it runs in the container. ConfigError without a key: it would be open to the world."""
    settings = load_settings()
    if not settings.task_app_keys():
        raise ConfigError("The Modal secret holds no ENVIRONMENT_API_KEY; the task app does not serve without.")
    trace_db = default_trace_path(local)
    made = make_app(app, trace_db=trace_db, trace_dir=traces, api_keys=settings.task_app_keys(), settings=settings)
    made.router.lifespan_context = _with_copies(made.router.lifespan_context, trace_db, traces, copy_seconds)
    return made


def _with_copies(inner: Lifespan[Any], source: Path, folder: Path, seconds: float) -> Lifespan[Any]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async def copy_now_and_then() -> None:
            copied = 0.0
            while True:
                await asyncio.sleep(seconds)
                if (changed := written_at(source)) > copied:
                    await asyncio.to_thread(copy_database, source, folder)
                    copied = changed

        copying = asyncio.create_task(copy_now_and_then())
        try:
            async with inner(app) as state:
                yield state
        finally:
            copying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await copying
            await asyncio.to_thread(copy_database, source, folder)

    return lifespan


def copy_database(source: Path, folder: Path) -> Path:
    """A consistent copy of a database that may be in use, put into `folder` at once. Its path."""
    folder.mkdir(parents=True, exist_ok=True)
    beside, target = source.with_suffix(".copy"), folder / source.name
    with contextlib.closing(sqlite3.connect(source)) as live, contextlib.closing(sqlite3.connect(beside)) as copy:
        live.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one plain file: the volume is no place for a write-ahead log
    arriving = target.with_suffix(".arriving")
    shutil.copyfile(beside, arriving)
    return arriving.replace(target)


# --------------------------------------------------------------------------- from here


def deploy(plan: Plan) -> str:
    """Deploy, or update what is deployed under this name; the address. ConfigError: no account, no secret."""
    with _explained(plan):
        app, function = modal_app(plan)
        with contextlib.redirect_stdout(sys.stderr), modal.enable_output():
            app.deploy()
        return str(function.get_web_url())


def serve(plan: Plan, stop: threading.Event) -> None:
    """Serve from Modal until `stop` is set; prints the address when it is known. Errors as `deploy`."""
    with _explained(plan):
        app, function = modal_app(plan)
        out = sys.stdout
        with contextlib.redirect_stdout(sys.stderr), modal.enable_output(), app.run():
            _say({"name": plan.name, "url": str(function.get_web_url())}, out)
            stop.wait()


@contextlib.contextmanager
def _explained(plan: Plan) -> Iterator[None]:
    try:
        yield
    except modal.exception.AuthError as e:
        raise ConfigError(
            "Modal does not know this machine. Run `modal token new`, or choose a runtime that needs no account: "
            "uvicorn, docker."
        ) from e
    except modal.exception.NotFoundError as e:
        raise ConfigError(
            f"Modal: {e} Make the secret with `modal secret create {plan.secret} --from-dotenv .env`: it needs "
            "ENVIRONMENT_API_KEY, and GROQ_API_KEY and the like for hosted models."
        ) from e
    except (modal.exception.Error, OSError) as e:
        raise ServiceError(f"Modal could not deploy {plan.name}: {type(e).__name__}: {e}") from e


def main(argv: Sequence[str] | None = None) -> int:
    """Deploy, serve or show; the exit code."""
    parser = argparse.ArgumentParser(prog="task_app.modal_app", description="The task app on Modal.")
    parser.add_argument("do", choices=("deploy", "serve", "show"))
    for name in ("app", "name", "secret", "volume"):
        parser.add_argument(f"--{name}", default=Plan.__dataclass_fields__[name].default)
    options = vars(parser.parse_args(argv))
    do = options.pop("do")
    try:
        plan = Plan(**options | {"app": find_environment(options["app"]).app_names[0]})
        if do == "show":
            modal_app(plan)  # what cannot be built is said now
            _say(asdict(plan) | {"function": FUNCTION, "packages": PACKAGES, "traces": str(TRACES)})
        elif do == "deploy":
            _say({"name": plan.name, "url": deploy(plan)})
        else:
            exit_with_parent()
            stop = threading.Event()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stop.set())
            serve(plan, stop)
    except PipelineError as e:
        print(f"modal: {e}", file=sys.stderr)
        return e.exit_code
    return 0


def _say(facts: dict[str, Any], out: TextIO | None = None) -> None:
    print(json.dumps(facts), file=out, flush=True)


if __name__ == "__main__":
    sys.exit(main())
