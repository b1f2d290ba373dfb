"""`crafter-pipeline eval`: models played on the same worlds, scored and compared."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from crafter_pipeline.cli.choices import ExplainConfig, print_choices
from crafter_pipeline.cli.common import AsJson, Backend, EnvFiles, Overrides, console, note, number, print_json, say
from crafter_pipeline.cli.eval_order import Asked, Order, read_order
from crafter_pipeline.errors import INTERRUPTED, PARTIAL, ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from crafter_pipeline.evaluation import Evaluation
    from crafter_pipeline.evaluation.match import Match, MatchPlan
    from crafter_pipeline.report.evaluation import EvaluationReport

SHOWN_SEEDS = 12
"""Failed seeds that a line names."""

Hidden = Parameter(show=False, negative="")
AtLeastOne = Annotated[int | None, Parameter(validator=Number(gte=1), show_default=False)]


def eval_(
    app: Annotated[str | None, Parameter(name="APP")] = None,
    /,
    *,
    suite: Annotated[str | None, Parameter(show_default=False)] = None,
    suites: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    config: Annotated[Path | None, Parameter(show_default=False)] = None,
    url: Annotated[str | None, Parameter(show_default=False)] = None,
    model: Annotated[str | None, Parameter(show_default=False)] = None,
    models: Annotated[str | None, Parameter(show_default=False)] = None,
    seeds: Annotated[str | None, Parameter(show_default=False)] = None,
    split: Annotated[str | None, Parameter(show_default=False)] = None,
    max_turns: AtLeastOne = None,
    max_llm_calls: AtLeastOne = None,
    concurrency: AtLeastOne = None,
    inference_url: Annotated[str | None, Parameter(show_default=False)] = None,
    backend: Backend = None,
    trace_db: Annotated[str | None, Parameter(show_default=False)] = None,
    metadata: Annotated[list[str] | None, Parameter(negative="", show_default=False)] = None,
    metadata_sql: Annotated[str | None, Parameter(show_default=False)] = None,
    env_file: EnvFiles = None,
    set_: Overrides = None,
    out: Annotated[Path | None, Parameter(show_default=False)] = None,
    max_failures: Annotated[int, Parameter(validator=Number(gte=0))] = 0,
    fresh: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    dry_run: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    explain_config: ExplainConfig = False,
    as_json: AsJson = False,
    toml: Annotated[Path | None, Hidden] = None,
    task_url: Annotated[str | None, Hidden] = None,
    task_app_url: Annotated[str | None, Hidden] = None,
    use_rollout: Annotated[bool, Hidden] = False,
) -> int:
    """Play models on the same worlds, score and compare them. The same command again plays only what is missing.

    Exit code 3 when more seeds fail than --max-failures.

    Parameters
    ----------
    app:
        Environment: grpo-crafter (default), math.
    suite:
        A fixed way to judge, e.g. crafter-200: environment, limits, worlds, and how models are asked.
    suites:
        Only list the suites.
    config:
        TOML file: a table [eval], or the flat one of run_eval.py; configs/recipes/eval_*.toml.
    url:
        Address of a running task app, or a comma list; default TASK_APP_URL, then the file's; else one is started.
    model:
        Who plays, in any form of an id; default EVAL_MODEL, then the file's.
    models:
        Several, as a comma list of MODEL, LABEL=MODEL or LABEL=MODEL@URL, compared in pairs.
    seeds:
        Worlds, e.g. 0-9,20; default the file's, else 16 held-out ones. With --suite: how many.
    split:
        With --suite, whose worlds: held_out (default), dev, train. Without: split of the task set, told to the
        environment and kept in the traces.
    max_turns:
        Model calls per episode; default MAX_TURNS, then the file's.
    max_llm_calls:
        The same.
    concurrency:
        Episodes at once; default CONCURRENCY, then the file's, else 16.
    inference_url:
        OpenAI-compatible base URL of all models; default the file's, else the training backend's.
    backend:
        Address of the training backend; default BACKEND_BASE_URL, else the local one.
    trace_db:
        Store the traces in this database; default CRAFTER_TRACE_DB where it names a file, then the file's.
    metadata:
        key=value: only tasks of this scenario_id, loop_id, thread_id or difficulty; may be repeated.
    metadata_sql:
        Only the seeds that this query finds in tasks(seed, scenario_id, loop_id, thread_id, difficulty).
    env_file:
        Variables for what is unset; may be repeated.
    set_:
        key=value on top of the file, e.g. eval.policy_config.temperature=0.2; may be repeated.
    out:
        Folder of report.html, report.json, seeds.csv, seeds.jsonl; default evals/NAME-DIGEST.
    max_failures:
        Seeds that may fail.
    fresh:
        Play everything anew.
    dry_run:
        Only say what would be played; asks no service.
    explain_config:
        Only say where each value comes from.
    as_json:
        Print report.json; progress goes to stderr.
    """
    if suites:
        return _list_suites(as_json=as_json)
    if use_rollout:
        note("crafter-pipeline: --use-rollout changes nothing, every episode is played through /rollout.")
    file = _one("--config", config, "--toml", toml)
    asked = Asked(
        suite=suite,
        app=app,
        url=_one("--url", _one("--url", url, "--task-url", task_url), "--task-app-url", task_app_url),
        model=model,
        models=models,
        seeds=seeds,
        split=split,
        turns=_one("--max-turns", max_turns, "--max-llm-calls", max_llm_calls),
        concurrency=concurrency,
        inference_url=inference_url,
        backend=backend,
        trace_db=trace_db or None,  # an unset variable in a script is nothing given
        metadata=metadata or [],
        metadata_sql=metadata_sql,
    )
    order = read_order(file, asked, env_file, set_ or [])
    if explain_config:
        print_choices(order.choices.explain(), as_json=as_json)
        return 0
    if dry_run:
        _show_order(order, out, as_json=as_json)
        return 0
    report, folder = _play(order, out, fresh=fresh)
    for cause in report.causes:
        note(f"{cause.label}, {_named_seeds(cause.seeds)}: {cause.why}")
    if as_json:
        print_json(report.to_json() | {"folder": str(folder)})
    else:
        _show(report, folder)
    if report.interrupted:
        note("crafter-pipeline: interrupted; the same command plays what is missing.")
        return INTERRUPTED
    if len(report.failed) > max_failures:
        return PARTIAL if report.rows else 1
    return 0


def _one(first: str, a: Any, second: str, b: Any) -> Any:
    if a is not None and b is not None and a != b:
        raise ConfigError(f"{first} and {second} are the same option; give one of them.")
    return a if a is not None else b


# --------------------------------------------------------------------------- playing


def _play(order: Order, out: Path | None, *, fresh: bool) -> tuple[EvaluationReport, Path]:
    from dataclasses import replace

    from crafter_pipeline import connections
    from crafter_pipeline.evaluation.match import check_keys, check_models, play_match, unfinished
    from crafter_pipeline.evaluation.players import resolved
    from crafter_pipeline.evaluation.tasks import select_seeds

    recipe, inference = order.recipe, connections.inference_url(order.backend_url)
    started = time.time()
    players = resolved(
        order.players,
        recipe,
        order.suite,
        inference,
        lambda name: connections.backend(order.backend_url).full_id(name),
    )
    with ExitStack() as stack:
        plan, folder = order.settle(players, order.seeds or (), out)
        if order.by_facts or fresh or unfinished(plan, folder):
            if recipe.task_app_url is None:
                check_keys(players)
            urls = stack.enter_context(_task_apps(order))
            check_models(players, urls, lambda url: url == inference)
            if order.by_facts:
                told = connections.task_app(urls[0]).task_info()
                taskset = told.get("taskset", told) if isinstance(told, dict) else {}
                seeds = select_seeds(taskset, order.seeds, recipe.metadata, recipe.metadata_sql)
                plan, folder = order.settle(players, seeds, out)
            plan = replace(plan, task_app_urls=urls)
        with _shown():
            match = play_match(plan, folder, fresh=fresh)
    return _report(order, plan, match, folder, started), folder


@contextmanager
def _task_apps(order: Order) -> Iterator[tuple[str, ...]]:
    """The addresses of those that are named and answer, or of one that is started."""
    from crafter_pipeline import connections
    from crafter_pipeline.evaluation.match import check_task_apps, served_task_app

    if order.recipe.task_app_url is not None:
        urls = connections.task_app_addresses(order.recipe.task_app_url)
        check_task_apps(urls)
        yield urls
        return
    note(f"No task app is named: {order.app} is started for this evaluation.")
    with served_task_app(order.app, order.backend_url) as url:
        yield (url,)


@contextmanager
def _shown() -> Iterator[None]:
    """A bar on a terminal, a line now and then elsewhere; both on stderr."""
    from rich.console import Console

    from crafter_pipeline.cli.display import lines_on, stage_bar
    from crafter_pipeline.progress import progress, report_to

    where = Console(file=sys.stderr)
    with stage_bar(where, "evaluate"), nullcontext() if where.is_terminal else report_to(lines_on(where)):
        if not where.is_terminal:
            progress().stage("evaluate", "started")
        yield


def _report(order: Order, plan: MatchPlan, match: Match, folder: Path, started: float) -> EvaluationReport:
    from crafter_pipeline.report.evaluation import EvaluationReport, score, write_evaluation

    achievements = () if order.environment is None else order.environment.achievements
    evaluations, comparisons = score(plan.players, match.rows, achievements)
    report = EvaluationReport(
        name=order.name or " + ".join(player.label for player in plan.players),
        environment=order.app if order.environment is None else order.environment.name,
        created_at=started,
        players=list(plan.players),
        seeds=list(plan.seeds),
        rows=match.rows,
        failed=match.outcome.failed,
        evaluations=evaluations,
        comparisons=comparisons,
        judges=[judge.name for judge in plan.judges],
        judge_failures=match.judge_failures,
        not_applied=match.not_applied,
        untraced=len(match.untraced),
        trace_db=plan.trace_db,
        suite=None if order.suite is None else order.suite.name,
        split=plan.split,
        interrupted=match.outcome.interrupted,
        seconds=match.seconds,
    )
    write_evaluation(report, folder)
    return report


# --------------------------------------------------------------------------- showing


def _list_suites(*, as_json: bool) -> int:
    from crafter_pipeline.config import split_of
    from crafter_pipeline.evaluation.suites import SUITES

    if as_json:
        print_json(
            [
                {
                    "name": suite.name,
                    "environment": suite.environment,
                    "max_env_steps": suite.max_env_steps,
                    "seeds": {"start": suite.seeds.start, "count": suite.seeds.count},
                    "env_config": dict(suite.env_config),
                    "policy": None if suite.policy is None else dict(suite.policy),
                    "says": suite.says,
                }
                for suite in SUITES.values()
            ]
        )
        return 0
    table = _table("suite", "environment", "env steps", "seeds", "for")
    for suite in SUITES.values():
        worlds = f"{suite.seeds.count} {split_of(suite.seeds.start)}"
        table.add_row(suite.name, suite.environment, f"{suite.max_env_steps:,}", worlds, suite.says)
    console().print(table)
    return 0


def _show_order(order: Order, out: Path | None, *, as_json: bool) -> None:
    from crafter_pipeline.report.evaluation import masked
    from crafter_pipeline.report.text import seeds as seeds_in_words

    plan, folder = order.settle(order.players, order.seeds or (), out)
    first = order.players[0].request((order.seeds or (0,))[0]).model_dump(mode="json", exclude_none=True)
    first["policy"]["config"] = masked(first["policy"]["config"])
    first["ops"] = f"agent, env × {order.players[0].rules.turns}"
    shown = {
        "suite": None if order.suite is None else order.suite.name,
        "app": order.app,
        "task_app": order.recipe.task_app_url or "started for this evaluation",
        "players": [
            {"label": p.label, "model": p.model, "served_at": p.inference_url or p.policy.get("provider")}
            for p in order.players
        ],
        "seeds": None if order.seeds is None else list(order.seeds),
        "max_turns": order.players[0].rules.turns,
        "concurrency": order.recipe.concurrency,
        "judges": [judge.name for judge in order.recipe.scorers],
        "trace_db": None if plan.trace_db is None else str(plan.trace_db),
        "folder": str(folder),
        "first_request": first,
    }
    if as_json:
        print_json(shown)
        return
    where = f"at {order.recipe.task_app_url}" if order.recipe.task_app_url else "(a task app is started)"
    say(f"{order.app} {where}, at most {shown['max_turns']} turns, {shown['concurrency']} at once")
    for p in order.players:
        say(f"  {p.label}: {p.model} at {p.inference_url or p.policy.get('provider')}")
    say(f"Worlds: {'those that metadata finds' if order.seeds is None else seeds_in_words(order.seeds)}")
    if plan.trace_db is not None:
        say(f"Traces: {plan.trace_db}")
    say(f"Results: {folder}")


def _show(report: EvaluationReport, folder: Path) -> None:
    from rich.markup import escape

    from crafter_pipeline.report.evaluation import SMALL_DIFFERENCE
    from crafter_pipeline.report.report import success_rows
    from crafter_pipeline.report.text import interval, percent, signed, words

    tokens = report.tokens()
    scores = _table("player", "seeds", "return", "achievements", "95 % interval", "no wake up", "Crafter score")
    scores.title = escape(f"{report.name}: {report.status}")
    costs = _table("player", "turns", "died", "unreadable", "tokens in", "tokens out", "seconds", "model")
    for e in report.evaluations:
        rows = report.of(e.label)
        scores.add_row(
            escape(e.label),
            f"{len(e.seeds)} of {len(report.seeds)}",
            number(e.mean_reward),
            number(e.mean_achievements),
            interval(e.ci95, 2),
            number(e.without_wake_up),
            _crafter_score(e),
        )
        costs.add_row(
            escape(e.label),
            number(e.turns / len(rows), ".1f"),
            "–" if e.death_share is None else percent(e.death_share),
            f"{e.parse_failures:,} of {e.turns:,}",
            number(tokens[e.label]["prompt"], ","),
            number(tokens[e.label]["completion"], ","),
            number(sum(row.seconds for row in rows) / len(rows), ".1f"),
            escape(e.model),
        )
    if report.evaluations:
        console().print(scores)
        console().print(costs)
    else:
        say(f"{report.name}: no episode was finished.")
    for c in report.comparisons:
        says = "" if c.clear else "  (open)"
        say(f"  {c.b} − {c.a}: {signed(c.delta, 2)} {interval(c.ci95, 2, sign=True)} on {len(c.seeds)} seeds{says}")
    if hints := report.seeds_hints:
        pair, most = max(hints.items(), key=lambda item: item[1])
        say(f"  To see a difference of {SMALL_DIFFERENCE} takes up to {most:,} seeds ({pair}).")
    unlocked = [(name, rates) for name, rates in success_rows(report.evaluations) if any(rates)]
    if unlocked:
        shares = _table("achievement", *(escape(e.label) for e in report.evaluations))
        for name, rates in unlocked:
            shares.add_row(escape(words(name)), *("–" if rate is None else percent(rate) for rate in rates))
        console().print(shares)
    if report.judges:
        judged = _table("player", "judge", "mean", "scored", "r with the return")
        for label, by_judge in report.judged().items():
            for name, told in by_judge.items():
                of = f"{told['scored']} of {told['scored'] + told['missing']}"
                judged.add_row(escape(label), escape(name), number(told["mean"], ".3f"), of, number(told["pearson_r"]))
        console().print(judged)
    for name, why in report.not_applied.items():
        say(f"Without effect: {name} ({why})")
    if report.trace_db is not None:
        say(f"Traces: {report.trace_db}")
    if report.untraced:
        say(f"{report.untraced} answers came without a trace that could be stored.")
    for name in ("report.html", "report.json", "seeds.csv"):
        say(str(folder / name))


def _crafter_score(evaluation: Evaluation) -> str:
    from crafter_pipeline.report.text import interval

    if not evaluation.has_crafter_score:
        return "–"
    told = evaluation.crafter_score_ci95
    return f"{evaluation.crafter_score:.1f}" + ("" if told is None else f" {interval(told)}")


def _table(*titles: str) -> Table:
    """Names on the left, which may be broken, and numbers on the right, which may not."""
    from rich.table import Table

    table = Table(title_justify="left", box=None, pad_edge=False)
    for title in titles:
        words = title in ("player", "model", "judge", "achievement", "suite", "environment", "for")
        table.add_column(title, justify="left" if words else "right", overflow="fold", no_wrap=not words)
    return table


def _named_seeds(seeds: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, seeds[:SHOWN_SEEDS]))
    more = f" and {len(seeds) - SHOWN_SEEDS} more" if len(seeds) > SHOWN_SEEDS else ""
    return f"seed{'' if len(seeds) == 1 else 's'} {shown}{more}"
