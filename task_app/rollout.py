"""Plays one episode: observe, ask the model, read its answer, act, until there is a reason to stop.

`plan_rollout` turns a request into a `Plan` or refuses it, `play` plays the plan, `answer_of` writes the wire's
answer. Nothing here knows HTTP or SQLite.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from crafter_pipeline.clients.chat import ChatClient, chat_url
from crafter_pipeline.contracts import Rollout, RolloutRequest, StopReason, Turn
from crafter_pipeline.errors import FieldError, suggest
from crafter_pipeline.rewards import Shaper, StepRewards, read_step_rewards
from crafter_pipeline.traces.wire import trace_payload
from task_app.environments import Environment, Episode, Setup
from task_app.policies import History, Policy, Prompter, read_policy, with_cid

CALL_SECONDS = 600.0
"""Deadline of one model call, all its tries included."""
DEFAULT_TURNS = 10
MAX_ENV_STEPS = 10_000
_AGENT_OPS = frozenset({"agent", "policy", "model"})
_ENV_OPS = frozenset({"env", "environment", "step"})


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that can be played."""

    request: RolloutRequest
    environment: Environment
    setup: Setup
    policy: Policy
    seed: int
    max_env_steps: int
    """Game actions."""
    max_turns: int | None
    """Model calls; None: no limit of their own."""
    step_rewards: StepRewards | None
    correlation_id: str | None
    """As given by the caller, or made for an inference gateway in mode rl."""
    digest: str
    """Changes with everything that decides the result or the answer's shape, not with addresses and keys."""

    @property
    def budget(self) -> int:
        """Env steps that the limits allow together: what the observation calls its maximum."""
        if self.max_turns is None:
            return self.max_env_steps
        return min(self.max_env_steps, self.max_turns * self.policy.max_actions_per_turn)


def plan_rollout(request: RolloutRequest, environment: Environment) -> Plan:
    """Resolve a request. FieldError names the field that is wrong."""
    info, env = environment.info, request.env
    asked = (env.env_name or info.name).lower()
    names = (info.name, *info.app_names)
    if asked not in (*names, "crafterclassic", "crafter_classic"):
        raise FieldError("env.env_name", f"this task app plays {info.name}, not {asked!r}; {suggest(asked, names)}")
    policy = read_policy(request.policy)
    shaping_field, shaping = "policy.config.step_rewards", request.policy.config.get("step_rewards")
    if shaping is None:
        shaping_field, shaping = "env.config.step_rewards", env.config.get("step_rewards")
    correlation_id = policy.correlation_id()
    if correlation_id is None and request.mode == "rl":
        if not policy.is_gateway:
            raise FieldError(
                "policy.config.trace_correlation_id",
                "mode rl needs a correlation id: send it here, or as ?cid=trace_… in inference_url",
            )
        correlation_id = f"trace_{request.run_id}"
    max_env_steps, max_turns = _limits(request, policy)
    try:
        setup = environment.prepare(env.config)
    except FieldError as e:
        raise e.below("env.config") from None
    try:
        step_rewards = read_step_rewards(shaping, info.achievements)
    except FieldError as e:
        raise e.below(shaping_field) from None
    return Plan(
        request=request,
        environment=environment,
        setup=setup,
        policy=policy,
        seed=env.seed or 0,
        max_env_steps=max_env_steps,
        max_turns=max_turns,
        step_rewards=step_rewards,
        correlation_id=correlation_id,
        digest=_digest(request),
    )


def _limits(request: RolloutRequest, policy: Policy) -> tuple[int, int | None]:
    """(game actions, model calls or None). Whichever comes first ends the episode."""
    config = request.env.config
    env_steps = _positive(config, "max_env_steps", "env.config", MAX_ENV_STEPS)
    params = config.get("env_params")
    per_episode = _positive(
        params if isinstance(params, dict) else {}, "max_steps_per_episode", "env.config.env_params"
    )
    agent_ops = sum(_is_agent_op(i, op) for i, op in enumerate(request.ops))
    if request.ops and not agent_ops:
        raise FieldError("ops", 'no agent op in it: send ["agent", "env", …], or an empty list to play to a limit')
    given = [n for n in (policy.max_llm_calls, per_episode, agent_ops or None) if n is not None]
    if not given and env_steps is None:
        given = [DEFAULT_TURNS]
    if "max_ops" in request.safety.model_fields_set:
        given.append((request.safety.max_ops + 1) // 2)  # a turn is an agent op and an env op
    return env_steps or MAX_ENV_STEPS, min(given) if given else None


def _positive(config: Mapping[str, Any], key: str, field: str, most: int | None = None) -> int | None:
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (most is not None and value > most):
        raise FieldError(f"{field}.{key}", "send an integer from 1 on" + (f" to {most}" if most else ""))
    return value


def _is_agent_op(index: int, op: str | dict[str, Any]) -> bool:
    name = op if isinstance(op, str) else op.get("type") or op.get("op")
    if name not in _AGENT_OPS and name not in _ENV_OPS:
        raise FieldError(f"ops.{index}", f"there is no op {name!r}; known: agent, env")
    return name in _AGENT_OPS


_ADDRESSES = frozenset({"inference_url", "api_key", "trace_correlation_id", "trace"})


def _digest(request: RolloutRequest) -> str:
    record = request.record
    facts = (
        request.mode,
        request.env.model_dump(),
        request.policy.policy_name,
        {k: v for k, v in request.policy.config.items() if k not in _ADDRESSES},
        request.ops,
        request.safety.model_dump(),
        (record.trajectories, record.return_trace, record.trace_format if record.return_trace else None),
    )
    return hashlib.sha256(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


@dataclass(slots=True)
class Played:
    """An episode that was played: the rollout and what only the answer needs."""

    rollout: Rollout
    final_observation: str
    shaper: Shaper | None
    details: dict[str, Any]
    """The environment's own facts of the result."""


async def play(plan: Plan, chat: ChatClient) -> Played:
    """Play an episode to its end. ModelError when the chat model fails for good."""
    request, policy, environment = plan.request, plan.policy, plan.environment
    course = _Course(plan, environment.start(plan.seed, plan.budget, plan.setup))
    created_at = time.time()
    prompter = Prompter(policy, request.run_id, environment.system_prompt(policy), environment.tools(policy))
    try:
        async with asyncio.timeout(request.safety.max_time_s):
            await asyncio.sleep(0)  # lets max_time_s = 0 strike, and siblings start
            stop = await course.run(prompter, chat)
    except TimeoutError:
        stop = StopReason.TIME_LIMIT
    metadata: dict[str, Any] = {
        "policy_config": policy.record(),
        "env_config": request.env.config,
        "mode": request.mode,
        "training_session_id": request.training_session_id,
        "synth_base_url": request.synth_base_url,
    }
    if plan.correlation_id is not None:
        metadata["trace_correlation_id"] = plan.correlation_id
    rollout = Rollout(
        run_id=request.run_id,
        environment=environment.info.name,
        seed=plan.seed,
        policy=request.policy.policy_name or f"{environment.info.name}-react",
        model=policy.model,
        provider=policy.provider_name,
        turns=tuple(course.turns),
        achievements=tuple(course.episode.unlocked),
        total_reward=course.total_reward,
        env_steps=course.env_steps,
        stop_reason=stop,
        created_at=created_at,
        tools=environment.tools(policy),
        metadata=metadata,
    )
    return Played(rollout, course.observation, course.shaper, course.episode.details)


@dataclass(slots=True)
class _Course:
    """An episode under way: what is left of it when the time is up."""

    plan: Plan
    episode: Episode
    turns: list[Turn] = field(default_factory=list)
    env_steps: int = 0
    total_reward: float = 0.0
    observation: str = ""
    shaper: Shaper | None = None

    async def run(self, prompter: Prompter, chat: ChatClient) -> StopReason:
        plan, policy, episode = self.plan, self.plan.policy, self.episode
        history, read = History(policy.history), plan.environment.read
        url = chat_url(policy.inference_url)
        if plan.step_rewards is not None:
            self.shaper = Shaper(plan.step_rewards)
        self.observation = episode.observe(policy.observation)
        while plan.max_turns is None or len(self.turns) < plan.max_turns:
            payload = prompter.request(history.user_text(self.observation))
            started_at = time.time()
            reply = await chat.complete(url, payload, deadline_s=CALL_SECONDS)
            answer = read(reply, policy)
            before = episode.counters() if self.shaper is not None else None
            steps = [] if answer.actions else [episode.unreadable(answer)]
            for action in answer.actions:
                steps.append(episode.step(action))
                if steps[-1].end is not None:
                    break
            end, executed = steps[-1].end, len(steps)
            reward = sum(step.reward for step in steps)
            unlocked = tuple(name for step in steps for name in step.unlocked)
            actions = tuple(step.action for step in steps)
            index = len(self.turns)
            info: dict[str, Any] = {}
            if self.shaper is not None and before is not None:
                counters = episode.counters()
                reward, info["stepwise"] = self.shaper.reward(index, actions, unlocked, reward, before, counters)
            if not_executed := (*answer.actions[executed:], *answer.dropped):
                info["not_executed"] = list(not_executed)
            if answer.unknown:
                info["unknown_actions"] = list(answer.unknown)
            self.env_steps += executed
            self.total_reward += reward
            observation, self.observation = self.observation, episode.observe(policy.observation)
            self.turns.append(
                Turn(
                    index=index,
                    messages=payload["messages"],
                    reply=reply,
                    actions=actions,
                    parse_failure=answer.failure,
                    reward=reward,
                    unlocked=unlocked,
                    started_at=started_at,
                    ended_at=time.time(),
                    observation=observation,
                    next_observation=self.observation,
                    info=info,
                )
            )
            if end is not None and end.terminal:
                return end
            if self.env_steps >= plan.max_env_steps:
                return StopReason.ENV_LIMIT
            if end is not None:  # the budget that the limits allow together
                return StopReason.TURN_LIMIT
            history.add(reply.thinking, actions)
        return StopReason.TURN_LIMIT


def answer_of(plan: Plan, played: Played) -> bytes:
    """The wire's answer as JSON. Times are in the trace; requests and raw answers are not repeated in the steps."""
    rollout, shaper, record = played.rollout, played.shaper, plan.request.record
    turns = rollout.turns
    url = with_cid(plan.policy.inference_url, plan.correlation_id)
    details: dict[str, Any] = {
        "achievements": rollout.achievements,
        "env_steps": rollout.env_steps,
        "stop_reason": rollout.stop_reason,
        "turn_rewards": [turn.reward for turn in turns],
        "parse_failures": sum(turn.parse_failure is not None for turn in turns),
    }
    details |= played.details
    if shaper is not None:
        details["stepwise"] = shaper.summary()
    pipeline_metadata = {"inference_url": url}
    if plan.correlation_id is not None:
        pipeline_metadata["trace_correlation_id"] = plan.correlation_id
    trajectory = {
        "env_id": f"{rollout.environment}::{rollout.seed}",
        "policy_id": rollout.policy,
        "steps": [_step(plan, rollout, turn, url) for turn in turns] if record.trajectories else [],
        "final": {"observation": {"text": played.final_observation}},
        "length": len(turns),
        "inference_url": url,
        "decision_samples": None if shaper is None else shaper.samples,
    }
    return orjson.dumps(
        {
            "run_id": rollout.run_id,
            "trajectories": [trajectory],
            "branches": {},
            "metrics": {
                "episode_returns": [rollout.total_reward],
                "mean_return": rollout.total_reward,
                "num_steps": len(turns),
                "num_episodes": 1,
                "outcome_score": None,
                "events_score": None,
                "details": details,
            },
            "aborted": rollout.stop_reason == StopReason.TIME_LIMIT,
            "ops_executed": 2 * len(turns),
            "trace_correlation_id": plan.correlation_id or f"trace_{rollout.run_id}",
            "trace": trace_payload(rollout, record.trace_format) if record.return_trace else None,
            "pipeline_metadata": pipeline_metadata,
        }
    )


def _step(plan: Plan, rollout: Rollout, turn: Turn, url: str) -> dict[str, Any]:
    reply, environment = turn.reply, plan.environment.info
    last = turn is rollout.turns[-1]
    terminal = last and rollout.stop_reason.terminal
    meta: dict[str, Any] = {
        "inference_url": url,
        "turn_index": turn.index,
        "history_len": min(turn.index, plan.policy.history),
        "inference_ms": round(reply.latency_ms, 3),
        "usage": {
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        },
    }
    if reply.thinking:
        meta["thinking"] = reply.thinking
    info: dict[str, Any] = {"achievements_added": turn.unlocked, "meta": meta, **turn.info}
    if turn.parse_failure is not None:
        info["parse_failure"] = turn.parse_failure
    return {
        "obs": {"text": turn.observation},
        "tool_calls": [{"tool_name": environment.tool_name, "arguments": environment.tool_arguments(turn.actions)}],
        "reward": turn.reward,
        "done": terminal,
        "truncated": last and not terminal,
        "info": info,
    }
