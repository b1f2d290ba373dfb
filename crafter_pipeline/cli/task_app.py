"""`crafter-pipeline task-app …`: which environments there are, and what can be said of a served one."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from crafter_pipeline.cli.common import (
    ApiKey,
    AsJson,
    EnvFiles,
    Overrides,
    console,
    note,
    print_json,
    read_key,
    say,
    use_env_files,
)
from crafter_pipeline.cli.serving import Port, deploy, modal_serve, serve
from crafter_pipeline.cli.shaping import read_shaping
from crafter_pipeline.errors import ConfigError, ValidationFailed

if TYPE_CHECKING:
    from crafter_pipeline.clients.task_app import TaskAppClient
    from crafter_pipeline.validation import PlayerScore, ValidationReport

MARKS = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}
KEY_VARIABLE = "ENVIRONMENT_API_KEY"
DEFAULT_SEEDS = 8

task_app = App(name="task-app", help="Look into an environment before compute is spent on it.", help_format="plaintext")
task_app.command(serve, show=False)
task_app.command(deploy, show=False)
task_app.command(modal_serve, show=False)


@task_app.command(name="list")
def list_(*, as_json: AsJson = False) -> int:
    """The environments that can be served.

    Parameters
    ----------
    as_json:
        Print them as JSON.
    """
    from rich.table import Table

    from crafter_pipeline.environments import ENVIRONMENTS

    if as_json:
        found = ENVIRONMENTS.values()
        print_json(
            [
                {
                    "app": info.app_names[0],
                    "aliases": list(info.app_names[1:]),
                    "environment": info.name,
                    "title": info.title,
                    "tool": info.tool_name,
                    "actions": list(info.actions),
                    "achievements": list(info.achievements),
                    "observations": list(info.observations),
                }
                for info in found
            ]
        )
        return 0
    table = Table(box=None, pad_edge=False)
    for title in ("app", "what", "also called"):
        table.add_column(title, overflow="fold")
    for info in ENVIRONMENTS.values():
        acts = f"{len(info.actions)} actions" if info.actions else "free text"
        what = f"{info.title}: {acts}, tool {info.tool_name}, {len(info.achievements)} achievement"
        table.add_row(
            info.app_names[0], what + ("s" if len(info.achievements) > 1 else ""), ", ".join(info.app_names[1:])
        )
    console().print(table)
    return 0


@task_app.command
def info(
    *,
    url: Annotated[str | None, Parameter(name=["--url", "--base"], show_default=False)] = None,
    api_key: ApiKey = None,
    seed: Annotated[list[int] | None, Parameter(name="--seed", negative="", show_default=False)] = None,
    env_file: EnvFiles = None,
    as_json: AsJson = False,
) -> int:
    """What a running task app says of itself and of its tasks.

    Parameters
    ----------
    url:
        Its address; default TASK_APP_URL, else http://127.0.0.1:8001.
    api_key:
        Its key, as env:NAME; default ENVIRONMENT_API_KEY.
    seed:
        Tell of this task, too; may be repeated.
    env_file:
        Variables for what is unset; may be repeated.
    as_json:
        Print the whole answers as JSON.
    """
    from crafter_pipeline.settings import load_settings

    use_env_files(env_file)
    address = (url or load_settings().task_app_url or "http://127.0.0.1:8001").split(",")[0].strip()
    client = client_at(address, read_key("--api-key", api_key))
    about, taskset = client.info(), client.task_info()
    tasks = client.task_info(seed) if seed else []
    tasks = tasks if isinstance(tasks, list) else [tasks]
    if as_json:
        print_json({"url": client.url, "info": about, "taskset": taskset.get("taskset", taskset), "tasks": tasks})
        return 0
    for line in _about(client.url, about, taskset.get("taskset") or {}):
        say(line)
    for number, task in zip(seed or (), tasks, strict=False):
        say(f"seed {number:<6} {_told(task)}")
    return 0


def _about(url: str, about: Mapping[str, Any], taskset: Mapping[str, Any]) -> Iterator[str]:
    """The facts that a person looks for; --json has all."""
    task = (about.get("service") or {}).get("task") or {}
    yield f"{task.get('name') or task.get('id')} {task.get('version') or ''} at {url}: {task.get('description') or ''}"
    seeds = taskset.get("seed_range") or ["?", "?"]
    yield f"tasks       {taskset.get('name') or taskset.get('id')}, seeds {seeds[0]} to {seeds[-1]}"
    for what, part in ("limits", about.get("limits")), ("inference", about.get("inference")):
        yield f"{what:<11} {_plain(part)}"
    for name, rubric in (about.get("rubrics") or {}).items():
        criteria = (rubric or {}).get("criteria") or []
        yield f"rubric      {name}: {', '.join(str(c.get('id')) for c in criteria) or 'none'}"


def _told(task: Mapping[str, Any]) -> str:
    """What tells one task from another."""
    seen = task.get("observation") or {}
    shown = {key: seen[key] for key in ("problem", "traits", "player_position") if key in seen}
    return _plain(shown or task.get("dataset"))


def _plain(value: Any) -> str:
    """A table of the answer on one line."""
    if not isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    return ", ".join(
        f"{key} {v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}" for key, v in value.items()
    )


@task_app.command
def validate(
    name: Annotated[str | None, Parameter(name="APP")] = None,
    /,
    *,
    url: str | None = None,
    api_key: ApiKey = None,
    env_file: EnvFiles = None,
    seeds: Annotated[int, Parameter(validator=Number(gte=1, lte=1000))] = DEFAULT_SEEDS,
    min_instances: Annotated[int | None, Parameter(show=False, validator=Number(gte=1, lte=1000))] = None,
    max_env_steps: Annotated[int, Parameter(validator=Number(gte=1, lte=10_000))] = 100,
    rewards: Path | None = None,
    set_: Overrides = None,
    port: Annotated[Port, Parameter(show=False)] = 0,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"], negative="", show_default=False)] = False,
    as_json: AsJson = False,
) -> int:
    """Play an environment with an expert, a random and degenerate players, and check what comes of it.

    Without --url the task app is started for this. Exit code 1 when a check failed.

    Parameters
    ----------
    name:
        Environment: grpo-crafter, math, …; default with --url: what the task app says it is, else grpo-crafter.
    url:
        Address of a running task app.
    api_key:
        Its key, as env:NAME; default ENVIRONMENT_API_KEY.
    env_file:
        Variables for what is unset; may be repeated.
    seeds:
        Worlds to play.
    min_instances:
        The same.
    max_env_steps:
        Game actions per episode.
    rewards:
        TOML file with a step_rewards table, or its keys at the top.
    set_:
        key=value of step_rewards, e.g. strategy=per_achievement; may be repeated.
    port:
        Of the task app that is started; default: any free one.
    verbose:
        Show the numbers behind each check.
    as_json:
        Print the report as JSON.
    """
    from crafter_pipeline.validation import validate as check

    use_env_files(env_file)
    step_rewards = read_shaping(rewards, set_ or ())
    with _served(name, url, api_key, port) as client:
        report = check(
            client,
            name or client.service(),
            seeds=min_instances or seeds,
            max_env_steps=max_env_steps,
            step_rewards=step_rewards,
            say=lambda text: note(f"… {text}"),
        )
    if as_json:
        print_json(report.to_json())
    else:
        print_validation(report, verbose=verbose)
    return ValidationFailed.exit_code if report.failed else 0


def print_validation(report: ValidationReport, *, verbose: bool = False) -> None:
    """Two tables, and what to do."""
    from rich.markup import escape
    from rich.table import Table

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
    console().print(players)
    checks = Table("", "check", "found", show_header=False, box=None, padding=(0, 2, 0, 0))
    for check in report.checks:
        behind = f" ({_plain(check.numbers)})" if verbose and check.numbers else ""
        checks.add_row(MARKS[check.state], check.name, escape(f"{check.says} {check.remedy}".strip() + behind))
    console().print(checks)
    say(_last_line(report))


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


def client_at(url: str, api_key: str | None, timeout: float = 60.0) -> TaskAppClient:
    """A client of the task app at `url`; its key is `api_key`, else the one of the settings."""
    from crafter_pipeline.clients.http import service_client
    from crafter_pipeline.clients.task_app import TaskAppClient
    from crafter_pipeline.settings import load_settings, reveal

    key = api_key or reveal(load_settings().environment_api_key)
    return TaskAppClient(service_client(url, key, timeout))


@contextmanager
def _served(name: str | None, url: str | None, api_key: str | None, port: int) -> Iterator[TaskAppClient]:
    """A client of the task app at `url`, or of one that lives as long as the block."""
    from crafter_pipeline.deployment import task_app_arguments
    from crafter_pipeline.processes import Service

    if url is not None:
        if port:
            raise ConfigError("--port is for a task app that is started here: leave out --port, or --url.")
        yield client_at(url, read_key("--api-key", api_key))
        return
    if api_key is not None:
        raise ConfigError("--api-key is the key of a running task app: give its --url too.")
    key = secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory(prefix="crafter-validate-") as folder:
        arguments = task_app_arguments(name or "grpo-crafter", Path(folder) / "traces")
        log = Path(folder) / "task_app.log"
        with Service("task app", "task_app", arguments, log=log, port=port, environment={KEY_VARIABLE: key}) as service:
            yield client_at(service.url, key)
