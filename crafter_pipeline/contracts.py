"""What travels between the services, defined once.

Three kinds of things:

* the episode as we keep it (`Rollout`, `Turn`, `Reply`): plain frozen dataclasses, made by the task app, kept by
  the trace store, read by dataset and evaluation;
* the wire shape of `POST /rollout` (`RolloutRequest`, `RolloutResponse`), which published clients speak
  (`extra` keys are kept, never refused);
* the wire shape of chat completions lives in `clients/chat.py`, that of jobs in `clients/payloads.py`.
"""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

# --------------------------------------------------------------------------- the episode


class StopReason(StrEnum):
    """Why an episode ended."""

    DEATH = "death"
    ENV_LIMIT = "env_limit"  # the environment's own step limit
    TURN_LIMIT = "turn_limit"  # model calls or ops used up
    TIME_LIMIT = "time_limit"  # safety.max_time_s
    SOLVED = "solved"  # nothing left to achieve
    FAILED = "failed"  # the task ended unsolved: a wrong answer
    ABORTED = "aborted"  # somebody stopped it from outside

    @property
    def terminal(self) -> bool:
        """The story ended by itself, not by a limit."""
        return self in (StopReason.DEATH, StopReason.SOLVED, StopReason.FAILED)


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a chat model, as it came."""

    content: str
    thinking: str = ""
    """`reasoning_content` or the text between `<think>` tags; never dropped."""
    tool_calls: tuple[dict[str, Any], ...] = ()
    """OpenAI form: {"id", "type", "function": {"name", "arguments": JSON string}}."""
    finish_reason: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_ms: float = 0.0
    prompt_token_ids: tuple[int, ...] | None = None
    """Of the rendered prompt; None, here and below: the server did not tell."""
    token_ids: tuple[int, ...] | None = None
    """Of the answer, as sampled."""
    logprobs: tuple[float, ...] | None = None
    """Natural logarithm of each sampled token's probability."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One model call and the env steps it caused."""

    index: int
    messages: tuple[dict[str, Any], ...]
    """Exactly what the model saw: chat messages, system first."""
    reply: Reply
    actions: tuple[str, ...]
    """Actions executed, in order; ("noop",) after a parse failure."""
    parse_failure: str | None
    """Why the answer could not be read; None: it could."""
    reward: float
    """Reward of this turn (default: achievements newly unlocked in it)."""
    unlocked: tuple[str, ...]
    started_at: float
    """Unix seconds."""
    ended_at: float
    observation: str = ""
    """Text of the observation the turn acted on."""
    next_observation: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    """Further facts of the turn, each only where there is something to tell.

    gains: {"inventory": {name: change}, "achievements": {name: change}} of the environment's counters;
    stepwise: shaping and its components; events: what each action did, in words; not_executed: actions that were
    answered and not played; stopped_on: damage or unlock, why not; unknown_actions; parse_failure_kind;
    parse_failure_penalty: what was taken off the reward.
    """


@dataclass(frozen=True, slots=True)
class Rollout:
    """One episode of one policy on one seed."""

    run_id: str
    environment: str
    seed: int
    policy: str
    model: str
    provider: str
    turns: tuple[Turn, ...]
    achievements: tuple[str, ...]
    total_reward: float
    env_steps: int
    stop_reason: StopReason
    created_at: float
    """Unix seconds."""
    tools: tuple[dict[str, Any], ...] = ()
    """Tools offered to the model in every call; empty: text answers."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Further facts for the trace: policy config, training session, correlation id."""


# --------------------------------------------------------------------------- POST /rollout


class Wire(BaseModel):
    """A wire shape of the Synth contract: unknown keys are kept, never refused. NaN and infinity are no numbers."""

    model_config = ConfigDict(extra="allow", protected_namespaces=(), allow_inf_nan=False)


MAX_SEED = 2**63 - 1
"""Of a world: what SQLite, JSON and the game hold alike."""
MAX_OPS = 20_000
NO_CONTROL_CHARACTERS = r"^[^\x00-\x1f\x7f-\x9f]+$"


def _finite(table: dict[str, Any]) -> dict[str, Any]:
    """A table of free form; ValueError if a number in it is NaN or infinite, which JSON cannot hold."""
    pending: list[Any] = [table]
    while pending:
        value = pending.pop()
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("numbers must be finite")
        if isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return table


Table = Annotated[dict[str, Any], AfterValidator(_finite)]
Name = Annotated[str, Field(max_length=200)]


class EnvSpec(Wire):
    env_id: Name | None = None
    """A live environment; None: a new one."""
    env_name: Name | None = None
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    config: Table = Field(default_factory=dict)


class PolicySpec(Wire):
    policy_id: Name | None = None
    policy_name: Name | None = None
    config: Table = Field(default_factory=dict)


class RecordSpec(Wire):
    trajectories: bool = True
    """False: the answer carries no steps (metrics only)."""
    logprobs: bool = False
    """Ask the model's server for the probabilities and token ids of its answers; they are kept in the trace."""
    value: bool = False
    return_trace: bool = False
    trace_format: Literal["compact", "full", "structured"] = "compact"
    store: bool = True
    """Ours: False keeps the rollout out of the trace DB and the ledger (RL's own rollouts)."""


class SafetySpec(Wire):
    max_ops: int = Field(default=100_000, ge=1, le=1_000_000_000)
    max_time_s: float = Field(default=3600.0, ge=0)


class RolloutRequest(Wire):
    """Body of `POST /rollout`."""

    run_id: str = Field(min_length=1, max_length=200, pattern=NO_CONTROL_CHARACTERS)
    mode: Literal["rl", "eval"] = "eval"
    env: EnvSpec = Field(default_factory=EnvSpec)
    policy: PolicySpec = Field(default_factory=PolicySpec)
    ops: list[str | dict[str, Any]] = Field(default_factory=list, max_length=MAX_OPS)
    record: RecordSpec = Field(default_factory=RecordSpec)
    on_done: Literal["reset", "terminate"] = "reset"
    """What becomes of a live environment after the rollout: reset and live, or dropped."""
    safety: SafetySpec = Field(default_factory=SafetySpec)
    training_session_id: Name | None = None
    synth_base_url: str | None = Field(default=None, max_length=2000)


class RolloutMetrics(Wire):
    episode_returns: list[float]
    mean_return: float
    num_steps: int
    """Turns (the wire's decisions)."""
    num_episodes: int = 1
    outcome_score: float | None = None
    events_score: float | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    """achievements [names], env_steps, stop_reason, turn_rewards [float], parse_failures, tokens {prompt, completion},
    stepwise?, setup?, not_applied? {dotted field of the request: reason}"""


class RolloutResponse(Wire):
    """Answer of `POST /rollout`."""

    run_id: str
    trajectories: list[dict[str, Any]]
    branches: dict[str, list[str]] = Field(default_factory=dict)
    metrics: RolloutMetrics
    aborted: bool = False
    ops_executed: int = 0
    trace_correlation_id: str | None = None
    trace: dict[str, Any] | None = None
    pipeline_metadata: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """What collect and evaluate keep of one rollout: the answer without its steps."""

    run_id: str
    seed: int
    achievements: tuple[str, ...]
    total_reward: float
    turns: int
    env_steps: int
    stop_reason: str
    parse_failures: int = 0
    unlocked_at: dict[str, int] = field(default_factory=dict)
    """Achievement -> env step (from 1) that unlocked it; empty where the server does not tell."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    """Over all turns; None: the server does not tell."""

    @classmethod
    def of(cls, seed: int, answer: RolloutResponse) -> EpisodeResult:
        """Read the answer's metrics. Servers that are not ours may leave `details` empty."""
        details = answer.metrics.details  # its words are kept once, however many episodes say them
        tokens = details.get("tokens")
        tokens = tokens if isinstance(tokens, dict) else {}
        return cls(
            run_id=answer.run_id,
            seed=seed,
            achievements=tuple(sys.intern(str(name)) for name in details.get("achievements") or ()),
            total_reward=answer.metrics.mean_return,
            turns=answer.metrics.num_steps,
            env_steps=int(details.get("env_steps") or answer.metrics.num_steps),
            stop_reason=sys.intern(str(details.get("stop_reason") or "unknown")),
            parse_failures=int(details.get("parse_failures") or 0),
            unlocked_at={sys.intern(str(k)): int(v) for k, v in (details.get("unlocked_at") or {}).items()},
            prompt_tokens=tokens.get("prompt"),
            completion_tokens=tokens.get("completion"),
        )


@dataclass(frozen=True, slots=True)
class Compute:
    """What a training job has used up, all its workers together: those that were restarted, too.

    Of the workers alone: neither the task app that plays their episodes nor the child that serves models is counted.
    """

    wall_seconds: float
    """That workers were there; waiting in the queue is none."""
    cpu_seconds: float
    """User and system time of the workers and of the processes they started."""
    gpu_seconds: float
    """Wall seconds on CUDA times the GPUs held; 0 elsewhere."""
    tokens: int
    """Trained, prompts included; what was trained again after a restart counts once. 0: the model reads no tokens."""
    episodes: int | None = None
    """Played to be trained on; None: the job plays none, or its backend does not tell."""
    turns: int | None = None
    """Model calls of these episodes."""

    @classmethod
    def of(cls, told: Any) -> Compute | None:
        """Read a job's `compute`; None where a backend tells none that can be read."""
        try:
            return _COMPUTE.validate_python(told)
        except ValidationError:
            return None

    def to_json(self) -> dict[str, Any]:
        """As the wire and report.json have it."""
        return asdict(self)


_COMPUTE = TypeAdapter(Compute)
SIGN_OF_LIFE = "job.alive"
"""Type of an event that says nothing but that a silent job goes on."""
TERMINAL_JOB_STATES = frozenset({"succeeded", "failed", "cancelled", "canceled", "completed", "error"})
