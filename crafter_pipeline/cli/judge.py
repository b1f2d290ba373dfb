"""`crafter-pipeline judge`: stored rollouts judged by rubrics and functions."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from crafter_pipeline.cli import showing
from crafter_pipeline.cli.backends import DEFAULT_BACKEND, BackendChoice
from crafter_pipeline.cli.common import AsJson, many, note, number, print_json, say, short, use_env_files
from crafter_pipeline.cli.traces.common import NO_REPEATED_INPUTS, RepeatedInputs, tell_damage
from crafter_pipeline.errors import PARTIAL, ConfigError, DataError, JudgeError

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from crafter_pipeline.contracts import Rollout
    from crafter_pipeline.judging.review import Judge
    from crafter_pipeline.judging.rubric import Rubrics
    from crafter_pipeline.judging.stored import Judgement
    from crafter_pipeline.traces.reader import Damage

SHOWN = 40
"""Rows of the table, and problems; --json and --out have all."""
KINDS = ("programmatic", "model", "backend")
"""Judges that are no function."""
Count = Annotated[int, Parameter(validator=Number(gte=1))]


def judge(
    run_ids: Annotated[tuple[str, ...], Parameter(name="RUN_ID", negative="", show_default=False)] = (),
    /,
    *,
    inputs: RepeatedInputs = NO_REPEATED_INPUTS,
    judges: Annotated[tuple[str, ...], Parameter(name="--judge", negative="", show_default=False)] = (),
    rubric: Path | None = None,
    model: str | None = None,
    inference_url: str | None = None,
    provider: str | None = None,
    record: Path | None = None,
    limit: Count | None = None,
    concurrency: Count = 8,
    store: bool = True,
    out: Path | None = None,
    at: BackendChoice = DEFAULT_BACKEND,
    as_json: AsJson = False,
) -> int:
    """Judge stored rollouts; their scores go into the trace database, where `filter` sees them.

    Exit code 3 when a judge failed on some of them.

    Parameters
    ----------
    run_ids:
        Rollouts, by their run id or its beginning; default: all.
    judges:
        programmatic, model, backend (it judges), or a function as module:function or file.py:function. NAME=… calls
        its score NAME. May be repeated. Default: model where --model is given, else programmatic.
    rubric:
        TOML or JSON file with the criteria of outcome and events; default: the environment's own.
    model:
        The chat model that judges.
    inference_url:
        Where it answers; default: the backend.
    provider:
        Of the model of judge backend, as that backend names it, e.g. groq.
    record:
        File that keeps the chat model's calls; those that come again are answered from it.
    limit:
        At most so many rollouts.
    concurrency:
        Rollouts at once.
    store:
        Write the scores into the trace database.
    out:
        Also write every review to this JSONL file, a line per rollout.
    as_json:
        Print the scores as JSON.
    """
    import asyncio

    from crafter_pipeline.files import write_whole
    from crafter_pipeline.judging.stored import summary

    use_env_files(at.env_files)
    wanted = _wanted(judges, model)
    _refuse_idle(wanted, model=model, inference_url=inference_url, record=record, provider=provider)
    given = None if rubric is None else _read_rubrics(rubric)
    paths = inputs.databases()
    damaged: list[Damage] = []
    setting = _Setting(wanted, model, inference_url, provider, record, concurrency, at)
    found = asyncio.run(_judge(setting, _chosen(paths, run_ids, limit, damaged), given, paths if store else ()))
    tell_damage(damaged)
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: no rollouts in it. Collect some first.")
    if out is not None:
        write_whole(out, "".join(f"{json.dumps(judgement.to_json())}\n" for judgement in found))
    totals = summary(found, wanted)
    if as_json:
        rows = [{k: v for k, v in judgement.to_json().items() if k != "reviews"} for judgement in found]
        print_json({"databases": [str(p) for p in paths], "stored": store, "judges": totals, "rollouts": rows})
    else:
        _show(found, totals)
        if store and any(judgement.scores for judgement in found):
            say("The scores are in the trace database: min_judge_scores of `filter` and `export` sees them.")
    return _tell_problems(found)


@dataclass(frozen=True)
class _Setting:
    """How the judges are made."""

    wanted: Mapping[str, str]
    """{name of the score: kind or function}."""
    model: str | None
    inference_url: str | None
    provider: str | None
    record: Path | None
    concurrency: int
    at: BackendChoice


async def _judge(
    setting: _Setting, rollouts: Iterator[tuple[Path, Rollout]], given: Rubrics | None, written: Sequence[Path]
) -> list[Judgement]:
    """Judge, and keep each score as soon as it is there."""
    from contextlib import AsyncExitStack

    from crafter_pipeline.judging.stored import judge_stored, keep_scores
    from crafter_pipeline.traces.store import TraceStore

    def rubrics_of(rollout: Rollout) -> Rubrics:
        return given if given is not None else _own_rubrics(rollout.environment)

    found = []
    async with AsyncExitStack() as stack:
        judges = {name: await _make(kind, name, setting, stack) for name, kind in setting.wanted.items()}
        stores = {path: stack.enter_context(TraceStore(path)) for path in written}
        async for judgement in judge_stored(rollouts, judges, rubrics_of, setting.concurrency):
            if judgement.path in stores:
                keep_scores(stores[judgement.path], judgement)
            found.append(judgement)
    return found


async def _make(kind: str, name: str, setting: _Setting, stack: AsyncExitStack) -> Judge:
    import asyncio

    from crafter_pipeline import connections
    from crafter_pipeline.clients.chat import ChatClient
    from crafter_pipeline.judging.model import ModelJudge
    from crafter_pipeline.judging.plugin import PluginJudge
    from crafter_pipeline.judging.programmatic import ProgrammaticJudge
    from crafter_pipeline.judging.record import JudgeRecord
    from crafter_pipeline.judging.rubric import PROGRAMMATIC
    from crafter_pipeline.judging.stored import BackendJudge

    if kind == "programmatic":
        return ProgrammaticJudge()
    if kind == "backend":
        return BackendJudge(setting.at.client(), model=setting.model or PROGRAMMATIC, provider=setting.provider)
    if kind != "model":
        here = os.getcwd()
        if here not in sys.path:  # as `python -m` has it, for functions in the working directory
            sys.path.append(here)
        return PluginJudge(kind, name=name)
    assert setting.model is not None
    url, named = setting.inference_url, setting.model
    if url is None:
        client = setting.at.client()
        url, named = connections.inference_url(setting.at.address()), await asyncio.to_thread(client.full_id, named)
    record = None if setting.record is None else JudgeRecord(setting.record)
    if record is not None:
        stack.callback(record.close)
    chat = await stack.enter_async_context(ChatClient(connections.chat_settings(url)))
    return ModelJudge(chat, url=url, model=named, record=record, concurrency=setting.concurrency)


def _wanted(judges: Sequence[str], model: str | None) -> dict[str, str]:
    """{name of the score: kind or function}. ConfigError for two of one name, and for a model that is not named."""
    wanted: dict[str, str] = {}
    for word in judges or (("model",) if model is not None else ("programmatic",)):
        name, equals, kind = word.partition("=")
        kind = kind if equals else word
        if kind not in KINDS and ":" not in kind and not kind.endswith(".py"):
            raise ConfigError(f"--judge {word}: write {', '.join(KINDS)}, module:function or file.py:function.")
        if kind == "model" and model is None:
            raise ConfigError("--judge model: name the chat model that judges with --model.")
        known = name if equals else (model or kind) if kind in ("model", "backend") else kind
        if known in wanted:
            raise ConfigError(f"--judge: two scores are called {known!r}. Write NAME={kind} for one of them.")
        wanted[known] = kind
    return wanted


def _refuse_idle(wanted: Mapping[str, str], **options: object) -> None:
    """ConfigError for an option that none of the judges looks at."""
    looks = {"model": ("model", "backend"), "inference_url": ("model",), "record": ("model",), "provider": ("backend",)}
    for name, value in options.items():
        if value is not None and not set(looks[name]) & set(wanted.values()):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is for --judge {' or '.join(looks[name])}. Add it, or leave {flag} out.")


def _read_rubrics(path: Path) -> Rubrics:
    """The criteria of a file. ConfigError says what is wrong with it."""
    from crafter_pipeline.config.reading import load_toml
    from crafter_pipeline.errors import FieldError
    from crafter_pipeline.judging.rubric import read_rubrics

    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else load_toml(path)
    except OSError as e:
        raise ConfigError(f"--rubric {path}: cannot be read ({e.strerror}).") from None
    except ValueError as e:
        raise ConfigError(f"--rubric {path}: not valid JSON: {e}") from None
    inner = value.get("rubric", value) if isinstance(value, dict) else value
    try:
        return read_rubrics(inner if not isinstance(inner, list) else {"outcome": inner})
    except FieldError as e:
        raise ConfigError(f"{path}: {e}") from None


def _own_rubrics(environment: str) -> Rubrics:
    """Those that the task app shows for an environment."""
    from crafter_pipeline.judging.rubric import read_rubrics
    from task_app.environments import environment_of

    return read_rubrics(environment_of(environment).rubrics())


def _chosen(
    paths: Sequence[Path], run_ids: Sequence[str], limit: int | None, damaged: list[Damage]
) -> Iterator[tuple[Path, Rollout]]:
    """The rollouts to judge, one in memory at a time."""
    from itertools import islice

    return islice(_rollouts(paths, run_ids, damaged), limit)


def _rollouts(paths: Sequence[Path], run_ids: Sequence[str], damaged: list[Damage]) -> Iterator[tuple[Path, Rollout]]:
    from crafter_pipeline.traces.reader import Damage, find_rollout, read_rollouts

    for run_id in run_ids:
        stored = find_rollout(paths, run_id)
        if stored.rollout is None or stored.problems:
            damaged.append(Damage(stored.path, stored.session_id, "; ".join(stored.problems)))
        else:
            yield stored.path, stored.rollout
    if run_ids:
        return
    for path in paths:
        for rollout in read_rollouts(path, damaged=damaged.append):
            yield path, rollout


def _show(found: Sequence[Judgement], totals: Mapping[str, Mapping[str, Any]]) -> None:
    names = list(totals)
    rows = [
        (
            short(j.run_id, 28),
            j.seed,
            short(j.model, 28),
            number(j.reward),
            *(number(j.scores.get(name), ".3f") for name in names),
        )
        for j in found[:SHOWN]
    ]
    showing.table(["rollout", "seed", "model", "return", *names], rows)
    if len(found) > SHOWN:
        say(f"… and {len(found) - SHOWN} more: --json or --out shows all.")
    for name, told in totals.items():
        r = "" if told["pearson_r"] is None else f", r with the return {told['pearson_r']:+.2f}"
        showing.line(f"{name}: mean {number(told['mean'], '.3f')} of {many(told['scored'], 'rollout')}{r}")


def _tell_problems(found: Sequence[Judgement]) -> int:
    """The exit code. JudgeError when no judge had a score for any rollout."""
    problems = [(j.run_id, name, why) for j in found for name, why in j.problems.items()]
    if not problems:
        return 0
    if not any(j.scores for j in found):
        raise JudgeError(f"No rollout could be judged. {problems[0][0]}, {problems[0][1]}: {problems[0][2]}")
    note(f"Not judged: {many(len(problems), 'score')} of {len(found) * len({name for _, name, _ in problems})}.")
    for run_id, name, why in problems[:SHOWN]:
        note(f"  {run_id}, {name}: {showing.plain(why)}")
    if len(problems) > SHOWN:
        note(f"  … and {len(problems) - SHOWN} more: --json or --out shows all.")
    return PARTIAL
