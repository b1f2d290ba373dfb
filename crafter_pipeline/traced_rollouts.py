"""A few rollouts through running task apps, each with its trace: asked for, played some at once, written down."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from crafter_pipeline.clients.task_app import TaskAppClient
from crafter_pipeline.config import parse_config
from crafter_pipeline.contracts import EpisodeResult, RolloutRequest
from crafter_pipeline.environments import find_environment
from crafter_pipeline.errors import ConfigError, ServiceError
from crafter_pipeline.traces.snapshots import snapshot_name, write_payload

ENVIRONMENT = "crafter"
"""Of a task app that does not say which one it plays."""


@dataclass(frozen=True, slots=True)
class TracedRollouts:
    """What is asked for: equal but for run_id and seed."""

    run_id: str
    """Of one episode; several are `<run_id>-000`, `<run_id>-001`, …"""
    seeds: Sequence[int]
    environment: str
    model: str
    inference_url: str
    max_turns: int
    """Model calls."""
    inference_key: str | None = field(default=None, repr=False)
    """For the host of `inference_url`; None: the task app has one, or none is needed."""
    ops: Sequence[str] = ()
    """Instead of an agent and an env op a turn."""
    policy: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of `policy.config`."""
    env: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `env.config`."""
    trace_format: Literal["compact", "full"] | None = "full"
    """None: the answers bring no traces."""

    def requests(self) -> list[RolloutRequest]:
        """Bodies of `POST /rollout`. ConfigError names what is not valid."""
        return [self._request(number, seed) for number, seed in enumerate(self.seeds)]

    def _request(self, number: int, seed: int) -> RolloutRequest:
        policy = {"model": self.model, "inference_url": self.inference_url, "max_llm_calls": self.max_turns}
        if self.inference_key is not None:
            policy["api_key"] = self.inference_key
        body = {
            "run_id": self.run_id if len(self.seeds) == 1 else f"{self.run_id}-{number:03d}",
            "mode": "eval",
            "env": {"env_name": self.environment, "seed": seed, "config": dict(self.env)},
            "policy": {"policy_name": f"{self.environment}-react", "config": {**policy, **self.policy}},
            "ops": list(self.ops) or ["agent", "env"] * self.max_turns,
            "record": {"return_trace": self.trace_format is not None, "trace_format": self.trace_format or "compact"},
        }
        return parse_config(RolloutRequest, body, "rollout")


@dataclass(frozen=True, slots=True)
class TracedEpisode:
    """How one of them went."""

    run_id: str
    seed: int
    result: EpisodeResult | None
    """None: it failed."""
    trace: Mapping[str, Any] | None = None
    not_applied: Mapping[str, str] = field(default_factory=dict)
    """Dotted field of the request -> why it had no effect."""
    stored: bool = False
    """The task app had its answer already; nothing was played."""
    error: str = ""
    conflict: bool = False
    """Its run_id stands for a request with other settings there."""

    def write(self, path: Path | None) -> Path | None:
        """Its trace as a file, default `<run_id>_trace.json` here; None without a trace. DataError if it cannot be
        written."""
        return None if self.trace is None else write_payload(self.trace, path or Path(snapshot_name(self.run_id)))


def environment_at(client: TaskAppClient) -> str:
    """The environment that a task app plays, as requests name it."""
    try:
        return find_environment(client.service()).name
    except ConfigError:
        return ENVIRONMENT


def play_traced(
    clients: Sequence[TaskAppClient], requests: Sequence[RolloutRequest], parallel: int
) -> Iterator[TracedEpisode]:
    """Play, up to `parallel` at once, spread over the task apps; each episode as it ends. One that fails does not stop
    the others."""
    waiting: queue.SimpleQueue[tuple[TaskAppClient, RolloutRequest]] = queue.SimpleQueue()
    for number, request in enumerate(requests):
        waiting.put((clients[number % len(clients)], request))
    ended: queue.SimpleQueue[TracedEpisode | BaseException] = queue.SimpleQueue()

    def work() -> None:
        while True:
            try:
                ended.put(_play(*waiting.get_nowait()))
            except queue.Empty:
                return
            except BaseException as e:
                ended.put(e)

    # Daemons: Ctrl-C ends the command at once. What is under way goes on in the task app, for the next call to find.
    for _ in range(min(parallel, len(requests))):
        threading.Thread(target=work, name="rollout", daemon=True).start()
    for _ in requests:
        episode = ended.get()
        if isinstance(episode, BaseException):
            raise episode
        yield episode


def _play(client: TaskAppClient, request: RolloutRequest) -> TracedEpisode:
    run_id, seed = request.run_id, request.env.seed or 0
    try:
        stored = client.state_of(run_id) in ("completed", "aborted")
        answer = client.rollout(request)
    except ServiceError as e:
        return TracedEpisode(run_id, seed, None, error=str(e), conflict=e.status == 409)
    told = answer.metrics.details.get("not_applied")
    not_applied = {str(k): str(v) for k, v in told.items()} if isinstance(told, dict) else {}
    return TracedEpisode(run_id, seed, EpisodeResult.of(seed, answer), answer.trace, not_applied, stored)
