"""`crafter-pipeline rollout`: a few traced rollouts through a running task app."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from crafter_pipeline.cli.choices import Choices, ExplainConfig, print_choices
from crafter_pipeline.cli.common import (
    ApiKey,
    AsJson,
    EnvFiles,
    Overrides,
    many,
    note,
    number,
    print_json,
    read_key,
    say,
    use_env_files,
)
from crafter_pipeline.cli.task_app import client_at
from crafter_pipeline.errors import PARTIAL, ConfigError, TaskAppError, suggest

if TYPE_CHECKING:
    from crafter_pipeline.traced_rollouts import TracedEpisode

LOCAL_TASK_APP = "http://localhost:8001"
TABLES = ("policy", "env")
Count = Annotated[int, Parameter(validator=Number(gte=1))]


def rollout(
    *,
    base_url: Annotated[str | None, Parameter(name=["--base-url", "--task-url"], show_default=False)] = None,
    api_key: ApiKey = None,
    model: Annotated[str | None, Parameter(show_default=False)] = None,
    inference_url: Annotated[str | None, Parameter(show_default=False)] = None,
    inference_api_key: Annotated[str | None, Parameter(show_default=False)] = None,
    max_llm_calls: Annotated[int, Parameter(name=["--max-llm-calls", "--max-turns"], validator=Number(gte=1))] = 10,
    max_policy_tokens: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    run_id: str = "local-trace",
    episodes: Annotated[int, Parameter(name=["--episodes", "--count"], validator=Number(gte=1))] = 1,
    parallel: Annotated[int, Parameter(name=["--parallel", "--concurrency"], validator=Number(gte=1))] = 4,
    seed: Annotated[int, Parameter(name=["--seed", "--start-seed"], validator=Number(gte=0))] = 42,
    seed_stride: Annotated[int, Parameter(validator=Number(gte=0))] = 1,
    ops: Annotated[str | None, Parameter(show_default=False)] = None,
    env_name: Annotated[str | None, Parameter(show_default=False)] = None,
    set_: Overrides = None,
    trace: Annotated[bool, Parameter(name=["--trace", "--return-trace"], negative="--no-trace")] = True,
    trace_format: Literal["full", "compact"] = "full",
    trace_file: bool = True,
    trace_path: Annotated[Path | None, Parameter(show_default=False)] = None,
    print_trace: bool = False,
    timeout: Annotated[float, Parameter(validator=Number(gt=0))] = 3600.0,
    fresh: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    env_file: EnvFiles = None,
    explain_config: ExplainConfig = False,
    as_json: AsJson = False,
) -> int:
    """Play traced rollouts through a running task app, and write <run-id>_trace.json.

    A run id that is stored is answered without playing. Exit code 3 when some episodes failed, 1 when all did.

    Parameters
    ----------
    base_url:
        Address of the task app; default TASK_APP_URL, else http://localhost:8001.
    api_key:
        Its key, as env:NAME; default ENVIRONMENT_API_KEY.
    model:
        Who plays, as the server of --inference-url calls it, else any id of the backend's; default: the expert.
    inference_url:
        Address of an OpenAI-compatible server; default: the training backend's models.
    inference_api_key:
        That server's key, as env:NAME, sent along for these rollouts; default: the task app's own for that host.
    max_llm_calls:
        Turns of an episode.
    max_policy_tokens:
        Tokens of one answer.
    run_id:
        Name of the rollout; of several episodes: <run-id>-000 and on.
    episodes:
        How many, each in a world of its own.
    parallel:
        Episodes at once.
    seed:
        World of the first episode.
    seed_stride:
        From one episode's world to the next one's.
    ops:
        agent,env,… instead of --max-llm-calls turns.
    env_name:
        Environment; default: the one the task app plays.
    set_:
        policy.KEY=VALUE or env.KEY=VALUE of the request's configs; may be repeated.
    trace:
        Have the trace in the answer.
    trace_format:
        full: everything, can be edited and imported. compact: counts, calls and rewards.
    trace_file:
        Write it to a file.
    trace_path:
        That file, for one episode; default <run-id>_trace.json.
    print_trace:
        Print it, too.
    timeout:
        Seconds to wait for an episode; it goes on in the task app, and the same command gets it.
    fresh:
        Play anew: a time is added to the run id.
    env_file:
        Variables for what is unset; may be repeated.
    explain_config:
        Print where each value comes from, and play nothing.
    as_json:
        Print the outcome as JSON.
    """
    choices = Choices(env_files=use_env_files(env_file))
    urls = choices.choose(
        "base_url", flag="--base-url", given=base_url, variables=["TASK_APP_URL"], default=LOCAL_TASK_APP
    )
    model = choices.choose("model", flag="--model", given=model)
    inference_url = choices.choose("inference_url", flag="--inference-url", given=inference_url)
    if trace_path is not None and (episodes > 1 or not trace or not trace_file):
        raise ConfigError("--trace-path names the file of one episode's trace: leave it out, or ask for one.")
    tables = _tables(set_ or [])
    if max_policy_tokens is not None:
        tables["policy"] |= {"max_tokens": max_policy_tokens, "max_completion_tokens": max_policy_tokens}
    if explain_config:
        print_choices(choices.explain(), as_json=as_json)
        return 0

    from crafter_pipeline import connections
    from crafter_pipeline.clients.chat import shown_url
    from crafter_pipeline.config import own_form
    from crafter_pipeline.traced_rollouts import TracedRollouts, environment_at, play_traced

    key = read_key("--api-key", api_key)
    clients = [client_at(url, key, timeout) for url in connections.task_app_addresses(urls)]
    for client in clients:
        client.health()  # an address or a key that is wrong is said once
    environment = environment_at(clients[0])
    model = model or f"{environment}-expert"
    if inference_url is None:
        backend = connections.backend_address()
        model = connections.backend(backend).full_id(model)
        inference_url = connections.inference_url(backend)
    wanted = TracedRollouts(
        run_id=f"{run_id}-{datetime.now(UTC):%Y%m%dT%H%M%S}" if fresh else run_id,
        seeds=range(seed, seed + seed_stride * episodes, seed_stride) if seed_stride else [seed] * episodes,
        environment=env_name or environment,
        model=model,
        inference_url=inference_url,
        max_turns=max_llm_calls,
        inference_key=read_key("--inference-api-key", inference_api_key),
        ops=[op for op in map(str.strip, (ops or "").split(",")) if op],
        policy={**own_form(model), **tables["policy"]},
        env=tables["env"],
        trace_format=trace_format if trace else None,
    )
    told: list[dict[str, Any]] = []
    conflict = False
    for episode in play_traced(clients, wanted.requests(), parallel):
        file = episode.write(trace_path) if trace_file else None
        told.append(_facts(episode, file) | ({"trace": episode.trace} if print_trace else {}))
        conflict |= episode.conflict
        if not as_json:
            _say(told[-1])
    told.sort(key=lambda facts: str(facts["run_id"]))
    played = [facts for facts in told if not facts["error"]]
    summary = {
        "task_app": clients[0].url,
        "model": model,
        "inference_url": shown_url(inference_url),
        "episodes": told,
        "failed": len(told) - len(played),
        "mean_return": _mean([facts["return"] for facts in played]),
        "mean_achievements": _mean([len(facts["achievements"]) for facts in played]),
    }
    if as_json:
        print_json(summary)
    else:
        _say_summary(summary, played)
    if conflict or any(facts["stored_already"] for facts in played):
        note("--fresh, or another --run-id, plays anew what is stored already.")
    if not played:
        return TaskAppError.exit_code
    return PARTIAL if len(played) < len(told) else 0


def _tables(overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`policy.config` and `env.config` of `--set`."""
    from crafter_pipeline.config import apply_overrides

    tables: dict[str, Any] = apply_overrides({name: {} for name in TABLES}, overrides)
    for name, table in tables.items():
        if name not in TABLES or not isinstance(table, dict):
            raise ConfigError(f"--set {name}: write policy.KEY=VALUE or env.KEY=VALUE; {suggest(name, TABLES)}")
    if "api_key" in tables["policy"]:
        raise ConfigError("--set policy.api_key: give the key as --inference-api-key env:NAME.")
    return tables


def _facts(episode: TracedEpisode, file: Path | None) -> dict[str, Any]:
    """An episode for --json."""
    facts: dict[str, Any] = {"run_id": episode.run_id, "seed": episode.seed, "error": episode.error or None}
    if (result := episode.result) is not None:
        facts |= {
            "return": result.total_reward,
            "achievements": list(result.achievements),
            "turns": result.turns,
            "env_steps": result.env_steps,
            "stop_reason": result.stop_reason,
            "stored_already": episode.stored,
            "not_applied": dict(episode.not_applied),
            "trace_file": str(file) if file is not None else None,
        }
    return facts


def _say(facts: dict[str, Any]) -> None:
    """A line an episode, and its trace where that is asked for."""
    name = f"{facts['run_id']} (seed {facts['seed']})"
    if facts["error"]:
        note(f"{name}: failed: {facts['error']}")
        return
    unlocked = ", ".join(facts["achievements"]) or "no achievement"
    again = ", stored already: nothing was played" if facts["stored_already"] else ""
    file = f"; {facts['trace_file']}" if facts["trace_file"] else ""
    say(
        f"{name}: return {facts['return']:.2f}, {unlocked}; {many(facts['turns'], 'turn')}, "
        f"{many(facts['env_steps'], 'step')}, ended by {facts['stop_reason']}{again}{file}"
    )
    for field, why in facts["not_applied"].items():
        note(f"{name}: {field} has no effect: {why}.")
    if "trace" in facts:
        print_json(facts["trace"])


def _say_summary(summary: dict[str, Any], played: Sequence[dict[str, Any]]) -> None:
    if len(summary["episodes"]) > 1 and played:
        say(
            f"{many(len(played), 'episode')} of {summary['model']}: mean return {number(summary['mean_return'])}, "
            f"mean achievements {number(summary['mean_achievements'])}, {summary['failed']} failed"
        )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
