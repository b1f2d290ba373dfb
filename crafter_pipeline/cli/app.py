"""The command line: names, options, exit codes. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from crafter_pipeline import __version__
from crafter_pipeline.cli.dataset import dataset, export, filter_
from crafter_pipeline.cli.models import models
from crafter_pipeline.cli.plan import plan
from crafter_pipeline.cli.task_app import task_app as task_app_commands
from crafter_pipeline.cli.traces import traces
from crafter_pipeline.errors import ConfigError, PipelineError

INTERRUPTED = 130

Port = Annotated[int, Parameter(validator=Number(gte=0, lte=65535))]

app = App(
    name="crafter-pipeline",
    help="Teach a small language model to play Crafter: rollouts, filtering, SFT, evaluation and RL.",
    version=__version__,
    version_flags=["--version"],
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.command(traces)
app.command(dataset)
app.command(export)
app.command(filter_, name="filter")
app.command(task_app_commands)
app.command(models)
app.command(plan)


@app.command
def serve(
    name: Annotated[str, Parameter(name="APP")] = "grpo-crafter",
    /,
    *,
    host: str = "127.0.0.1",
    port: Port = 8001,
    trace: Path | None = None,
    trace_db: str | None = None,
    reload: Annotated[bool, Parameter(negative="")] = False,
    env_file: Path | None = None,
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
        Folder of trace databases.
    trace_db:
        Trace database to write; default: a new one in the folder.
    reload:
        Restart when code changes.
    env_file:
        Variables for what is unset; default .env.
    """
    from task_app.__main__ import main as task_app

    options = _options(("--trace", trace), ("--trace-db", trace_db), ("--env-file", env_file))
    return task_app([name, "--host", host, "--port", str(port), *options, *(["--reload"] if reload else [])])


@app.command
def backend(
    *,
    host: str = "127.0.0.1",
    port: Port = 8000,
    data: Path | None = None,
    alias: Annotated[list[str] | None, Parameter(negative="")] = None,
    public_url: str | None = None,
    slots: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    max_upload_mb: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    env_file: Path | None = None,
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
        Variables for what is unset; default .env.
    """
    from train_app.__main__ import main as train_app

    options = _options(
        ("--data", data),
        ("--public-url", public_url),
        ("--slots", slots),
        ("--max-upload-mb", max_upload_mb),
        ("--env-file", env_file),
    )
    aliases = [word for item in alias or () for word in ("--alias", item)]
    return train_app(["--host", host, "--port", str(port), *options, *aliases])


@app.command
def run(
    *,
    profile: str | None = None,
    config: Path | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    fresh: Annotated[bool, Parameter(negative="")] = False,
    approve: Literal["auto", "ask"] = "auto",
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Run the whole loop and write runs/<run-id>/report.html. The same config again goes on where it stopped.

    Parameters
    ----------
    profile:
        File in configs/profiles without .toml; default tiny.
    config:
        A config file of one's own.
    set_:
        key=value on top, e.g. rl.iterations=2; may be repeated.
    fresh:
        Start anew although there is a run of this config.
    approve:
        ask: pause before each training job until somebody says yes on Prefect's page; its address is told. auto: never.
    as_json:
        Print report.json at the end, progress goes to stderr.
    """
    from crafter_pipeline.cli.run import run_pipeline

    if profile is not None and config is not None:
        raise ConfigError("Give --profile or --config, not both.")
    return run_pipeline(profile, config, set_ or [], fresh=fresh, approve=approve, as_json=as_json)


@app.command
def up(*, background: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Start a Prefect server unless one is configured, deploy every flow, start a worker. Ctrl-C stops all.

    Parts that die are started again.

    Parameters
    ----------
    background:
        Return when all is ready; `crafter-pipeline down` stops it.
    """
    from crafter_pipeline.cli.stack import up as start

    return start(background=background)


@app.command
def down() -> int:
    """Stop what `up --background` and `deploy-task-app` left running, and take the profile change back."""
    from crafter_pipeline.cli.stack import down as stop

    return stop()


@app.command
def doctor(
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    deep: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Check this machine and installation, and say what runs. Exit code 1 when something is broken.

    Parameters
    ----------
    as_json:
        Print the findings as JSON; what runs is among them, under the name "running".
    deep:
        See also, on a server of its own, that a schedule makes runs: half a minute.
    """
    from crafter_pipeline.cli.doctor import doctor as check

    return check(as_json=as_json, deep=deep)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code. What an operator can act on is one line, a bug keeps its traceback."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code: Any = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as e:
        print(f"crafter-pipeline: {_one_line(e)} See crafter-pipeline --help.", file=sys.stderr)
        return ConfigError.exit_code
    except PipelineError as e:
        print(f"crafter-pipeline: {e}", file=sys.stderr)
        return e.exit_code
    except BrokenPipeError:  # `… | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("crafter-pipeline: interrupted", file=sys.stderr)
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _options(*pairs: tuple[str, Any]) -> list[str]:
    return [word for name, value in pairs if value is not None for word in (name, str(value))]


def _one_line(error: CycloptsError) -> str:
    return " ".join(str(error).split())


def _terminated(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)  # so that every `finally` runs
