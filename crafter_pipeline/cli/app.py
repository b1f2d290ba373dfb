"""The command line: names, options, exit codes. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from crafter_pipeline import __version__
from crafter_pipeline.cli.choices import ExplainConfig
from crafter_pipeline.cli.common import AsJson, EnvFiles, Overrides, use_env_files
from crafter_pipeline.cli.curves import curves
from crafter_pipeline.cli.dataset import dataset, export, filter_
from crafter_pipeline.cli.eval import eval_
from crafter_pipeline.cli.eval_table import eval_table
from crafter_pipeline.cli.files import files
from crafter_pipeline.cli.judge import judge
from crafter_pipeline.cli.models import models
from crafter_pipeline.cli.plan import plan
from crafter_pipeline.cli.rollout import rollout
from crafter_pipeline.cli.serving import backend, deploy, modal_serve, serve
from crafter_pipeline.cli.setup import setup
from crafter_pipeline.cli.status import status
from crafter_pipeline.cli.sweep import sweep
from crafter_pipeline.cli.task_app import task_app as task_app_commands
from crafter_pipeline.cli.traces import traces
from crafter_pipeline.cli.train import train
from crafter_pipeline.errors import INTERRUPTED, ConfigError, PipelineError

app = App(
    name="crafter-pipeline",
    help="Teach a small language model to play Crafter: rollouts, filtering, SFT, evaluation and RL.",
    version=__version__,
    version_flags=["--version"],
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command(help="Let the shell complete commands and options, from its next start on.")
app.command(setup)
app.command(serve)
app.command(deploy)
app.command(modal_serve)
app.command(backend)
app.command(rollout)
app.command(eval_, name="eval")
app.command(eval_table)
app.command(export)
app.command(filter_, name="filter")
app.command(train)
app.command(status)
app.command(curves)
app.command(files)
app.command(models)
app.command(judge)
app.command(task_app_commands)
app.command(traces)
app.command(dataset)
app.command(plan)
app.command(sweep)


@app.command
def run(
    *,
    profile: str | None = None,
    config: Path | None = None,
    set_: Overrides = None,
    fresh: Annotated[bool, Parameter(negative="")] = False,
    approve: Literal["auto", "ask"] = "auto",
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    explain_config: ExplainConfig = False,
    env_file: EnvFiles = None,
    as_json: AsJson = False,
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
    dry_run:
        Show the stages, what each would ask of whom, and which keys are missing; nothing is asked. With --json: bodies.
    explain_config:
        Show every value and where it comes from; run nothing.
    env_file:
        Variables for what is unset; may be repeated.
    as_json:
        Print report.json at the end, progress goes to stderr.
    """
    if profile is not None and config is not None:
        raise ConfigError("Give --profile or --config, not both.")
    taken = use_env_files(env_file)
    if dry_run or explain_config:
        from crafter_pipeline.cli.run_preview import preview

        return preview(
            profile, config, set_ or [], explain=explain_config, fresh=fresh, as_json=as_json, env_files=taken
        )
    from crafter_pipeline.cli.run import run_pipeline

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


def _one_line(error: CycloptsError) -> str:
    return " ".join(str(error).split())


def _terminated(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)  # so that every `finally` runs
