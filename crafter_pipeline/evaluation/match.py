"""An evaluation from its plan to its rows: what is finished is not played again, traces and judges included."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from crafter_pipeline import connections
from crafter_pipeline.clients.chat import PROVIDER_URLS
from crafter_pipeline.config.base import digest_of
from crafter_pipeline.contracts import RolloutRequest, RolloutResponse
from crafter_pipeline.deployment import is_local
from crafter_pipeline.environments import find_environment
from crafter_pipeline.errors import ConfigError, DataError, JudgeError, ServiceError, TaskAppError
from crafter_pipeline.evaluation.players import Player
from crafter_pipeline.evaluation.playing import Outcome, play_all
from crafter_pipeline.evaluation.rows import FILE, EpisodeRow, RowFile
from crafter_pipeline.files import held, write_whole
from crafter_pipeline.judging.plugin import PluginJudge, payload_of
from crafter_pipeline.processes import Service
from crafter_pipeline.progress import progress
from crafter_pipeline.recipes.evaluation import JudgeRecipe, digest_of_judges
from crafter_pipeline.replicas import ask
from crafter_pipeline.services import refuses
from crafter_pipeline.settings import load_settings
from crafter_pipeline.traces.store import TraceStore
from crafter_pipeline.traces.wire import rollout_from_document

KEY_VARIABLE = "ENVIRONMENT_API_KEY"
_REPETITION = "repetition"
_REFUSED = (400, 401, 403)


@dataclass(frozen=True, slots=True)
class MatchPlan:
    """What is to be played, and what is done with it."""

    players: tuple[Player, ...]
    seeds: tuple[int, ...]
    task_app_urls: tuple[str, ...]
    """Several share the seeds."""
    concurrency: int
    judges: tuple[JudgeRecipe, ...] = ()
    trace_db: Path | None = None
    """Where the traces are imported; None: nowhere."""
    split: str | None = None
    """Kept with the traces."""

    @property
    def digest(self) -> str:
        """Changes with everything that decides the result."""
        identities = [[p.label, p.identity] for p in self.players]
        return digest_of([identities, list(self.seeds), digest_of_judges(self.judges)])

    @property
    def kept(self) -> str:
        """Changes with what is done with an episode beside playing it: an earlier row without that is of no use."""
        return digest_of([digest_of_judges(self.judges), str(self.trace_db and self.trace_db.absolute())])


@dataclass(slots=True)
class Match:
    """What was played."""

    rows: list[EpisodeRow]
    """Player by player, seed by seed; those of earlier calls among them."""
    outcome: Outcome
    """Of this call."""
    not_applied: dict[str, str] = field(default_factory=dict)
    """Dotted field of the request -> why the task app made nothing of it."""
    untraced: list[str] = field(default_factory=list)
    """Run ids of answers without the trace that was asked for, or with one that cannot be stored."""
    judge_failures: dict[str, str] = field(default_factory=dict)
    """Judge -> its first failure, in words."""
    seconds: float = 0.0


def play_match(plan: MatchPlan, folder: Path, *, fresh: bool = False) -> Match:
    """Play what of the plan is not finished in `folder`, a row each as it ends.

    Args:
        fresh: Play everything anew.

    Raises:
        ConfigError: a judge cannot be imported, or the folder is in use.
        DataError: the folder or the trace database cannot be written.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(held(folder / ".lock", "Wait for it, or choose another --out.", "Choose another --out."))
        if fresh:
            write_whole(folder / _REPETITION, secrets.token_hex(4) + "\n")
            (folder / FILE).unlink(missing_ok=True)
        wanted, known = _state(plan, folder)
        missing = _missing(plan, wanted, known)
        store = None if plan.trace_db is None or not missing else stack.enter_context(TraceStore(plan.trace_db))
        game = _Game(plan, store, RowFile(folder))
        if len(missing) < len(wanted):
            progress().note(f"{len(wanted) - len(missing)} of {len(wanted)} episodes are there from an earlier call.")
        progress().expect(len(missing), "episodes")
        outcome = play_all(missing, game.play, plan.concurrency)
        known |= {row.run_id: row for row in outcome.rows}
    rows = [
        replace(known[run_id], label=player.label)
        for player, seed in wanted
        if (run_id := player.run_id(seed)) in known
    ]
    match = game.match
    match.rows, match.outcome, match.seconds = rows, outcome, time.monotonic() - started
    return match


def unfinished(plan: MatchPlan, folder: Path) -> int:
    """Episodes of the plan that are still to be played or judged."""
    wanted, known = _state(plan, folder)
    return len(_missing(plan, wanted, known))


def _missing(
    plan: MatchPlan, wanted: list[tuple[Player, int]], known: dict[str, EpisodeRow]
) -> list[tuple[Player, int]]:
    """The episodes to ask for: not played, or a judge failed. The task app answers what it has played from its ledger,
    so that asking for a judge's sake plays nothing."""
    judges = {judge.name for judge in plan.judges}
    done = {run_id for run_id, row in known.items() if judges <= row.judge_scores.keys()}
    return [(player, seed) for player, seed in wanted if player.run_id(seed) not in done]


def _state(plan: MatchPlan, folder: Path) -> tuple[list[tuple[Player, int]], dict[str, EpisodeRow]]:
    """(every episode of the plan, {run id: row} of what is finished)."""
    repetition = _repetition(folder)
    players = [replace(p, rules=replace(p.rules, repetition=repetition)) for p in plan.players]
    _refuse_twins(players)
    wanted = [(player, seed) for player in players for seed in plan.seeds]
    if plan.trace_db is not None and not plan.trace_db.exists():
        return wanted, {}  # rows without the traces that were asked for
    return wanted, {run_id: row for run_id, row in RowFile(folder).read().items() if row.kept == plan.kept}


class _Game:
    """One episode from the request to its row. Called from several threads."""

    def __init__(self, plan: MatchPlan, store: TraceStore | None, file: RowFile) -> None:
        self._plan, self._store, self._file = plan, store, file
        self._judges = [PluginJudge(j.target, name=j.name, kwargs=j.options) for j in plan.judges]
        self.match = Match([], Outcome())

    def play(self, player: Player, seed: int) -> EpisodeRow:
        """Play, judge, store, and keep the row."""
        started = time.monotonic()
        request = player.request(seed)
        answer = ask(self._plan.task_app_urls, seed, player.inference_url or "", partial(_send, request))
        row = EpisodeRow.of(player, seed, answer, time.monotonic() - started)
        for name, why in (answer.metrics.details.get("not_applied") or {}).items():
            self.match.not_applied.setdefault(str(name), str(why))
        if player.rules.traced and answer.trace is None:
            self.match.untraced.append(row.run_id)
        row = replace(row, judge_scores=self._judged(row, answer), kept=self._plan.kept)
        if self._store is not None and answer.trace is not None:
            self._import(self._store, row, answer)
        self._file.add(row)
        return row

    def _judged(self, row: EpisodeRow, answer: RolloutResponse) -> dict[str, float]:
        if not self._judges:
            return {}
        payload, scores = _payload(row, answer), {}
        for judge in self._judges:
            try:
                scores[judge.name] = asyncio.run(judge.score(payload, row.run_id))
            except JudgeError as e:
                if judge.name not in self.match.judge_failures:
                    self.match.judge_failures[judge.name] = str(e)
                    progress().note(f"{e} Its score is missing wherever it fails.")
        return scores

    def _import(self, store: TraceStore, row: EpisodeRow, answer: RolloutResponse) -> None:
        facts: dict[str, Any] = {"official_score": row.official_score, "eval_seed": row.seed}
        if self._judges:
            facts["judge_scores"] = row.judge_scores
        if self._plan.split is not None:
            facts["task_split"] = self._plan.split
        for key in ("task_id", "task_rubric_id"):
            if (value := answer.metrics.details.get(key)) is not None:
                facts[key] = str(value)
        try:
            rollout = rollout_from_document(answer.trace)
        except DataError:
            self.match.untraced.append(row.run_id)
            return
        if not rollout.turns:
            return
        if not store.add(replace(rollout, metadata={**rollout.metadata, **facts})):
            store.annotate(row.run_id, facts)  # the task app writes the same file, or an earlier call did


def _payload(row: EpisodeRow, answer: RolloutResponse) -> dict[str, Any]:
    """What a judge is given, see `judging.plugin.payload_of`; without a trace, no prompt and no completion."""
    told = {"seed": row.seed, "prompt_index": 0, "prompt": "", "completion": "", "trace": answer.trace}
    if answer.trace is not None:
        try:
            told = payload_of(rollout_from_document(answer.trace)) | {"trace": answer.trace}
        except DataError:
            pass  # a compact trace, or one of a form of its own: the judge sees it as it is
    response = answer.model_dump(mode="json", exclude={"trace"})
    return told | {"metrics": response["metrics"], "response": response}


def _send(request: RolloutRequest, url: str) -> RolloutResponse:
    return connections.task_app(url).rollout(request)


def _refuse_twins(players: Sequence[Player]) -> None:
    seen: dict[str, str] = {}
    for player in players:
        other = seen.setdefault(player.identity, player.label)
        if other != player.label:
            raise ConfigError(f"{other} and {player.label} are the same model ({player.model}), asked in the same way.")


def _repetition(folder: Path) -> str:
    """What marks the episodes of this folder: nothing, until somebody asks for fresh ones."""
    file = folder / _REPETITION
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except OSError as e:
        raise DataError(f"{file}: cannot be read: {e.strerror or e}") from e


# --------------------------------------------------------------------------- the services


@contextmanager
def served_task_app(app: str, backend_url: str) -> Iterator[str]:
    """A task app that lives as long as the block: its address. It stores nothing, answers bring their traces.

    It runs in the same environment as we do, with a key of its own, so that it knows the keys of models.

    Args:
        backend_url: The training backend, which gets the backend's key.
    """
    name = find_environment(app).app_names[0]
    key = secrets.token_urlsafe(24)
    variables = {KEY_VARIABLE: key, "TASKAPP_TRACING_ENABLED": "0", "BACKEND_BASE_URL": backend_url}
    with (
        tempfile.TemporaryDirectory(prefix="crafter-eval-") as folder,
        Service("task app", "task_app", [name], log=Path(folder) / "task_app.log", environment=variables) as service,
    ):
        connections.remember_key(service.url, key)
        try:
            yield service.url
        finally:
            connections.forget(service.url)


def check_task_apps(urls: Sequence[str]) -> None:
    """TaskAppError when one of them does not answer, refuses the key, or is something else."""
    for url in urls:
        client = connections.task_app(url)
        try:
            client.health()
            client.task_info()
        except TaskAppError as e:
            if e.status not in (*_REFUSED, 404):
                raise
            says = "is something else: it has no /task_info" if e.status == 404 else "refuses the key"
            remedy = "Name a task app." if e.status == 404 else f"Set {KEY_VARIABLE} to its key."
            refused = TaskAppError(f"The task app at {url} {says}. {remedy}")
            refused.status = e.status
            raise refused from e


def check_keys(players: Sequence[Player]) -> None:
    """ConfigError when a hosted provider's key is not set here, for task apps that have our environment."""
    settings = load_settings()
    for player in players:
        provider = player.provider
        if provider is not None and not settings.inference_key(PROVIDER_URLS[provider]):
            name = f"{provider.upper()}_API_KEY"
            raise ConfigError(f"{player.model} is served by {provider}: set {name}, here or in .env.")


def check_models(players: Sequence[Player], task_app_urls: Sequence[str], is_backend: Callable[[str], bool]) -> None:
    """ServiceError when nobody listens where a player's model should be, as far as this machine can tell."""
    near = all(is_local(url) for url in task_app_urls)
    for url in dict.fromkeys(p.inference_url for p in players if p.inference_url and is_local(p.inference_url)):
        if not near:
            progress().note(
                f"The task app is not on this machine, and may not reach the models at {url}. Set BACKEND_BASE_URL, or "
                "--inference-url, to an address that it reaches."
            )
        elif refuses(url):
            remedy = (
                "Start the training backend with `crafter-pipeline backend`, or set BACKEND_BASE_URL to its address."
                if is_backend(url)
                else "Start what serves them, or name another --inference-url."
            )
            raise ServiceError(f"No chat models at {url}: nothing listens there. {remedy}")
