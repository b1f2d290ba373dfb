"""`crafter-pipeline serve | deploy | modal-serve | backend`: services that run until they are stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from crafter_pipeline.cli.common import AsJson, EnvFiles, note, print_json, say, use_env_files
from crafter_pipeline.errors import ConfigError

App = Annotated[str, Parameter(name="APP")]
Port = Annotated[int, Parameter(validator=Number(gte=0, lte=65535))]
Runtime = Literal["modal", "uvicorn", "docker"]
DEFAULT_APP = "grpo-crafter"
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8001
MODAL_NAME, MODAL_SECRET = "crafter-task-app", "crafter-pipeline"
BELONGS: dict[str, tuple[Runtime, ...]] = {
    "--modal-mode": ("modal",),
    "--name": ("modal",),
    "--secret": ("modal",),
    "--host": ("uvicorn",),
    "--port": ("uvicorn", "docker"),
    "--trace": ("uvicorn", "docker"),
    "--trace-db": ("uvicorn",),
    "--reload": ("uvicorn",),
    "--image": ("docker",),
}
"""Option of `deploy` -> the runtimes that have it."""


def serve(
    name: App = DEFAULT_APP,
    /,
    *,
    host: str = DEFAULT_HOST,
    port: Port = DEFAULT_PORT,
    trace: Path | None = None,
    trace_db: str | None = None,
    reload: bool = False,
    env_file: EnvFiles = None,
) -> int:
    """Serve an environment for rollouts. Its key is ENVIRONMENT_API_KEY.

    Parameters
    ----------
    name:
        Environment: grpo-crafter or math.
    host:
        Address to bind; beyond loopback a key is needed.
    port:
        0: any free one.
    trace:
        Folder of trace databases; default traces/v3.
    trace_db:
        Trace database to write; default: a new one in the folder.
    reload:
        Restart when code changes.
    env_file:
        Variables for what is unset; may be repeated. Then .env is read.
    """
    from task_app.__main__ import main as task_app

    use_env_files(env_file)
    options = _options(("--trace", trace), ("--trace-db", trace_db))
    return task_app([name, "--host", host, "--port", str(port), *options, *(["--reload"] if reload else [])])


def backend(
    *,
    host: str = "127.0.0.1",
    port: Port = 8000,
    data: Path | None = None,
    alias: Annotated[list[str] | None, Parameter(negative="")] = None,
    public_url: str | None = None,
    slots: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    max_upload_mb: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    env_file: EnvFiles = None,
) -> int:
    """Serve the training backend: files, jobs, models, chat completions. Its key is SYNTH_API_KEY.

    Parameters
    ----------
    host:
        Address to bind; beyond loopback a key is needed.
    port:
        0: any free one.
    data:
        Folder of files, jobs and models.
    alias:
        BASE=STAND-IN for weights that are not at hand; may be repeated.
    public_url:
        Our address as others see it.
    slots:
        Jobs at once; default: one per GPU, or one.
    max_upload_mb:
        Largest dataset that is taken; default 2048.
    env_file:
        Variables for what is unset; may be repeated. Then .env is read.
    """
    from train_app.__main__ import main as train_app

    use_env_files(env_file)
    options = _options(
        ("--data", data),
        ("--public-url", public_url),
        ("--slots", slots),
        ("--max-upload-mb", max_upload_mb),
    )
    aliases = [word for item in alias or () for word in ("--alias", item)]
    return train_app(["--host", host, "--port", str(port), *options, *aliases])


def deploy(
    name: App = DEFAULT_APP,
    /,
    *,
    runtime: Runtime = "modal",
    modal_mode: Annotated[Literal["deploy", "serve"] | None, Parameter(show_default=False)] = None,
    app_name: Annotated[str | None, Parameter(name="--name", show_default=False)] = None,
    secret: Annotated[str | None, Parameter(show_default=False)] = None,
    host: Annotated[str | None, Parameter(show_default=False)] = None,
    port: Annotated[Port | None, Parameter(show_default=False)] = None,
    trace: Path | None = None,
    trace_db: str | None = None,
    reload: bool = False,
    image: Annotated[str | None, Parameter(show_default=False)] = None,
    env_file: EnvFiles = None,
    dry_run: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    as_json: AsJson = False,
) -> int:
    """Put an environment where others reach it: on Modal, or on this machine, as a process or a container.

    No key is sent to Modal from here: they stand in a Modal secret, and the command that makes it is told.

    Parameters
    ----------
    name:
        Environment: grpo-crafter or math.
    runtime:
        uvicorn and docker serve on this machine until Ctrl-C.
    modal_mode:
        deploy (default): it stays. serve: it is there until Ctrl-C.
    app_name:
        Of the Modal app; default crafter-task-app.
    secret:
        Modal secret with ENVIRONMENT_API_KEY and the keys of hosted models; default crafter-pipeline.
    host:
        Address to bind, for uvicorn; default 127.0.0.1.
    port:
        For uvicorn and docker; 0: any free one; default 8001.
    trace:
        Folder of trace databases, for uvicorn and docker; default traces/v3.
    trace_db:
        Trace database to write, for uvicorn.
    reload:
        Restart when code changes, for uvicorn.
    image:
        Docker image; default: built from the checkout.
    env_file:
        Variables for what is unset; may be repeated. Then .env is read.
    dry_run:
        Only print what would be done; needs no account and no Docker.
    as_json:
        Print the outcome as JSON.
    """
    given = {
        "--modal-mode": modal_mode,
        "--name": app_name,
        "--secret": secret,
        "--host": host,
        "--port": port,
        "--trace": trace,
        "--trace-db": trace_db,
        "--reload": reload or None,
        "--image": image,
    }
    for option, value in given.items():
        if value is not None and runtime not in BELONGS[option]:
            raise ConfigError(f"{option} is for --runtime {' or '.join(BELONGS[option])}, not {runtime}.")
    use_env_files(env_file)
    if runtime == "modal":
        return _on_modal(
            name, app_name or MODAL_NAME, secret or MODAL_SECRET, modal_mode or "deploy", env_file, dry_run, as_json
        )
    port = DEFAULT_PORT if port is None else port
    if runtime == "docker":
        return _in_docker(name, port, trace or Path("traces/v3"), image, dry_run, as_json)
    host = host or DEFAULT_HOST
    if dry_run:
        return _tell_uvicorn(name, host, port, trace, trace_db, reload, as_json)
    if as_json:
        raise ConfigError("--json prints an outcome, and a service here has none before it ends: add --dry-run.")
    return serve(name, host=host, port=port, trace=trace, trace_db=trace_db, reload=reload)


def modal_serve(
    name: App = DEFAULT_APP,
    /,
    *,
    app_name: Annotated[str, Parameter(name="--name")] = MODAL_NAME,
    secret: str = MODAL_SECRET,
    env_file: EnvFiles = None,
    dry_run: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    as_json: AsJson = False,
) -> int:
    """Serve an environment from Modal until Ctrl-C: deploy --runtime modal --modal-mode serve.

    Parameters
    ----------
    name:
        Environment: grpo-crafter or math.
    app_name:
        Of the Modal app.
    secret:
        Modal secret with ENVIRONMENT_API_KEY and the keys of hosted models.
    env_file:
        Variables for what is unset; may be repeated. Then .env is read.
    dry_run:
        Only print what would be done; needs no account.
    as_json:
        Print the outcome as JSON.
    """
    use_env_files(env_file)
    return _on_modal(name, app_name, secret, "serve", env_file, dry_run, as_json)


def _on_modal(
    app: str,
    name: str,
    secret: str,
    mode: Literal["deploy", "serve"],
    env_file: list[Path] | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    from crafter_pipeline.deployment import deploy_modal, serve_modal
    from crafter_pipeline.settings import load_settings

    keys = f"modal secret create {secret} --from-dotenv {env_file[0] if env_file else '.env'}"
    if dry_run:
        plan = {"runtime": "modal", "mode": mode, **deploy_modal(app, name=name, secret=secret, dry_run=True)}
        _tell(plan | {"secret_command": keys}, as_json)
        return 0

    def reached(url: str) -> None:
        if as_json:
            print_json({"runtime": "modal", "mode": mode, "name": name, "url": url})
            return
        say(f"{app} is served from Modal as {name}: {url}")
        say(f"export TASK_APP_URL={url}")

    note(
        f"Keys stand in the Modal secret {secret}: ENVIRONMENT_API_KEY; for models GROQ_API_KEY, OPENAI_API_KEY, or "
        f"SYNTH_API_KEY with BACKEND_BASE_URL. `{keys}` makes it, --force replaces it."
    )
    if not load_settings().task_app_keys():
        note("ENVIRONMENT_API_KEY is not set here, so nobody here could call it: `crafter-pipeline setup` makes one.")
    if mode == "serve":
        note("Ctrl-C takes it down. Its image takes minutes the first time.")
        serve_modal(app, name=name, secret=secret, serving=reached)
        return 0
    note("Its image takes minutes the first time.")
    reached(str(deploy_modal(app, name=name, secret=secret)["url"]))
    return 0


def _in_docker(app: str, port: int, traces: Path, image: str | None, dry_run: bool, as_json: bool) -> int:
    from crafter_pipeline import container
    from crafter_pipeline.connections import project_root
    from crafter_pipeline.detached import state_dir
    from crafter_pipeline.environments import find_environment
    from crafter_pipeline.processes import free_port
    from crafter_pipeline.settings import load_settings

    app = find_environment(app).app_names[0]
    if dry_run:
        names = sorted(container.task_app_variables(load_settings()))
        built, folder = image or container.IMAGE, traces.absolute()
        told = {
            "runtime": "docker",
            "app": app,
            "url": f"http://127.0.0.1:{port or '(a free port)'}",
            "build": None if image else ["docker", "build", "--tag", container.IMAGE, str(project_root())],
            "command": container.run_command("crafter-task-app-…", app, built, folder, port, names),
            "variables": names,
        }
        _tell(told, as_json)
        return 0
    if as_json:
        raise ConfigError("--json prints an outcome, and a container here has none before it ends: add --dry-run.")
    log = state_dir() / "docker-build.log"
    if image is None:
        note(f"Building the task app's image; the first time that takes minutes. Log: {log}")
    built = container.build_image(log, image)
    port = port or free_port()
    say(f"{app} in a container of {built}: http://127.0.0.1:{port}, traces in {traces}")
    say(f"export TASK_APP_URL=http://127.0.0.1:{port}")
    return container.main(container.container_arguments(app, built, traces, port))


def _tell_uvicorn(
    app: str, host: str, port: int, trace: Path | None, trace_db: str | None, reload: bool, as_json: bool
) -> int:
    from crafter_pipeline.environments import find_environment
    from crafter_pipeline.settings import load_settings

    app = find_environment(app).app_names[0]
    options = _options(("--trace", trace), ("--trace-db", trace_db))
    told = {
        "runtime": "uvicorn",
        "app": app,
        "url": f"http://{host}:{port or '(a free port)'}",
        "command": ["crafter-pipeline", "serve", app, "--host", host, "--port", str(port), *options]
        + (["--reload"] if reload else []),
        "asks_for_key": bool(load_settings().task_app_keys()),
    }
    _tell(told, as_json)
    return 0


def _tell(facts: dict[str, Any], as_json: bool) -> None:
    """What would be done."""
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
        say(f"{name:<15} {'–' if shown is None else shown}")


def _options(*pairs: tuple[str, Any]) -> list[str]:
    return [word for name, value in pairs if value is not None for word in (name, str(value))]
