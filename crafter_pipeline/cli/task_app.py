"""`crafter-pipeline task-app …`: what can be said of a served environment."""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from crafter_pipeline.cli.shaping import read_shaping
from crafter_pipeline.errors import ConfigError, ValidationFailed

if TYPE_CHECKING:
    from crafter_pipeline.clients.task_app import TaskAppClient
    from crafter_pipeline.validation import PlayerScore, ValidationReport

MARKS = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}
KEY_VARIABLE = "ENVIRONMENT_API_KEY"

task_app = App(name="task-app", help="Look into an environment before compute is spent on it.", help_format="plaintext")


@task_app.command
def validate(
    name: Annotated[str | None, Parameter(name="APP")] = None,
    /,
    *,
    url: str | None = None,
    api_key: str | None = None,
    env_file: Path | None = None,
    seeds: Annotated[int, Parameter(validator=Number(gte=1, lte=1000))] = 8,
    max_env_steps: Annotated[int, Parameter(validator=Number(gte=1, lte=10_000))] = 100,
    rewards: Path | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative="")] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Play an environment with an expert, a random and degenerate players, and check what comes of it.

    Without --url the task app is started for this. Exit code 6 when a check failed.

    Parameters
    ----------
    name:
        Environment: grpo-crafter, math, …; default with --url: what the task app says it is, else grpo-crafter.
    url:
        Address of a running task app.
    api_key:
        Its key, as env:NAME; default ENVIRONMENT_API_KEY.
    env_file:
        Variables for what is unset; default .env.
    seeds:
        Worlds to play.
    max_env_steps:
        Game actions per episode.
    rewards:
        TOML file with a step_rewards table, or its keys at the top.
    set_:
        key=value of step_rewards, e.g. strategy=per_achievement; may be repeated.
    as_json:
        Print the report as JSON.
    """
    from crafter_pipeline.validation import validate as check

    step_rewards = read_shaping(rewards, set_ or ())
    with _served(name, url, api_key, env_file) as client:
        report = check(
            client,
            name or client.service(),
            seeds=seeds,
            max_env_steps=max_env_steps,
            step_rewards=step_rewards,
            say=lambda text: print(f"… {text}", file=sys.stderr),
        )
    if as_json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        print_validation(report)
    return ValidationFailed.exit_code if report.failed else 0


def print_validation(report: ValidationReport) -> None:
    """Two tables, and what to do."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(file=sys.stdout)
    shaped = (
        "" if report.step_rewards is None else f", reward shaped ({report.step_rewards.get('strategy', 'consistent')})"
    )
    title = f"{report.environment} at {report.url}: {len(report.seeds)} seeds, {report.max_env_steps} steps{shaped}"
    players = Table(title=title, title_justify="left")
    for column in ("player", "episodes", "return", "lowest", "highest", "achievements", "steps"):
        players.add_column(column, justify="left" if column == "player" else "right")
    for name, score in _shown(report.players):
        numbers = (score.mean_return, score.min_return, score.max_return, score.mean_achievements)
        shown = [f"{number:.2f}" for number in numbers]
        players.add_row(escape(name), str(score.episodes), *shown, f"{score.mean_steps:.0f}")
    console.print(players)
    checks = Table("", "check", "found", show_header=False, box=None, padding=(0, 2, 0, 0))
    for check in report.checks:
        checks.add_row(MARKS[check.state], check.name, escape(f"{check.says} {check.remedy}".strip()))
    console.print(checks)
    console.print(_last_line(report), highlight=False, markup=False)


def _shown(players: Sequence[PlayerScore]) -> list[tuple[str, PlayerScore]]:
    """(label, score): of those that do one thing only, and of the tricks, the one that gets the most."""
    rows: list[tuple[str, PlayerScore]] = []
    for _, same in groupby(players, lambda p: p.player.split()[0]):
        several = list(same)
        best = max(several, key=lambda p: p.mean_return)
        rows.append((best.player if len(several) == 1 else f"{best.player} (best of {len(several)})", best))
    return rows


def _last_line(report: ValidationReport) -> str:
    took = f"({report.seconds:.0f} s)"
    if not report.failed:
        return f"{report.environment} is fit for training {took}."
    names = ", ".join(check.name for check in report.failed)
    return f"{report.environment} is not fit for training: {names} {took}."


@contextmanager
def _served(name: str | None, url: str | None, api_key: str | None, env_file: Path | None) -> Iterator[TaskAppClient]:
    """A client of the task app at `url`, or of one that lives as long as the block."""
    from crafter_pipeline.clients.http import service_client
    from crafter_pipeline.clients.task_app import TaskAppClient
    from crafter_pipeline.deployment import task_app_arguments
    from crafter_pipeline.processes import Service
    from crafter_pipeline.settings import load_settings, reveal

    if env_file is not None and not env_file.is_file():
        raise ConfigError(f"--env-file {env_file}: no such file.")
    if url is not None:
        key = read_key(api_key) or reveal(load_settings(env_file).environment_api_key)
        with service_client(url, key) as http:
            yield TaskAppClient(http)
        return
    if api_key is not None:
        raise ConfigError("--api-key is the key of a running task app: give its --url too.")
    key = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory(prefix="crafter-validate-") as folder:
        arguments = task_app_arguments(name or "grpo-crafter", Path(folder) / "traces")
        if env_file is not None:
            arguments += ["--env-file", str(env_file)]
        log = Path(folder) / "task_app.log"
        with (
            Service("task app", "task_app", arguments, log=log, environment={KEY_VARIABLE: key}) as service,
            service_client(service.url, key) as http,
        ):
            yield TaskAppClient(http)


def read_key(given: str | None, variables: Mapping[str, str] = os.environ) -> str | None:
    """The key of `--api-key`: `env:NAME` reads a variable, anything else is the key itself, with a warning."""
    if given is None:
        return None
    if given.startswith("env:"):
        name = given.removeprefix("env:")
        if not variables.get(name):
            raise ConfigError(f"--api-key {given}: the variable {name} is not set.")
        return variables[name]
    print(
        "crafter-pipeline: a key on the command line stays in the shell's history; --api-key env:NAME does not.",
        file=sys.stderr,
    )
    return given
