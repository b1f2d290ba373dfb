"""Plays one episode: observe, ask the model, read its answer, act, until there is a reason to stop.

`plan_rollout` turns a request into a `Plan` or refuses it, `play` plays the plan, `answer_of` writes the wire's
answer. Nothing here knows HTTP or SQLite.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from crafter_pipeline.answers import Answer, refused_call
from crafter_pipeline.clients.chat import ChatClient, chat_url
from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn
from crafter_pipeline.rewards import Counters, Shaper
from crafter_pipeline.traces.records import dumps
from crafter_pipeline.traces.wire import trace_payload
from task_app.environments.protocol import Episode, Step
from task_app.plan import Plan, plan_rollout
from task_app.policies import with_cid, without_secrets
from task_app.prompts import Prompter, not_played

__all__ = ["Plan", "Played", "Progress", "answer_of", "plan_rollout", "play"]

CALL_SECONDS = 600.0
"""Deadline of one model call, all its tries included."""


@dataclass(slots=True)
class Played:
    """An episode that was played: the rollout and what only the answer needs."""

    rollout: Rollout
    final_observation: str
    shaper: Shaper | None
    unlocked_at: dict[str, int]
    """Achievement -> env step, from 1."""
    details: dict[str, Any]
    """The environment's own facts of the result."""
    not_applied: Mapping[str, str]
    """The plan's, and what showed itself in the play."""


@dataclass(slots=True)
class Progress:
    """What others may see of an episode under way, and how they stop it."""

    started_at: float = field(default_factory=time.time)
    """Unix seconds."""
    turns: int = 0
    env_steps: int = 0
    reward: float = 0.0
    achievements: tuple[str, ...] = ()
    aborted: bool = False
    limit: asyncio.Timeout | None = None
    """Of the play under way, if there is one."""

    def abort(self) -> None:
        """End the episode now, also in the middle of a model call; the rollout is kept as what it is."""
        self.aborted = True
        if self.limit is not None and not self.limit.expired():
            self.limit.reschedule(0.0)


async def play(
    plan: Plan, chat: ChatClient, *, episode: Episode | None = None, progress: Progress | None = None
) -> Played:
    """Play an episode to its end. ModelError when the chat model fails for good.

    Args:
        plan: What to play.
        chat: Who asks the model.
        episode: A live one to go on with; default: a new one.
        progress: Kept up to date after each turn; its `abort` ends the episode.
    """
    request, policy, environment = plan.request, plan.policy, plan.environment
    course = _Course(plan, episode, progress if progress is not None else Progress())
    tools = environment.tools(policy)
    system = environment.system_prompt(policy, plan.setup)
    prompter = Prompter(policy, request.run_id, system, tools, logprobs=request.record.logprobs)
    try:
        async with asyncio.timeout(request.safety.max_time_s) as course.progress.limit:
            await asyncio.sleep(0)  # lets max_time_s = 0 strike, and siblings start
            stop = await course.run(prompter, chat)
    except TimeoutError:
        stop = StopReason.ABORTED if course.progress.aborted else StopReason.TIME_LIMIT
    finally:
        course.progress.limit = None
    not_applied = {**_not_told(plan, course.turns), **plan.not_applied}
    rollout = Rollout(
        run_id=request.run_id,
        environment=environment.info.name,
        seed=plan.seed,
        policy=request.policy.policy_name or f"{environment.info.name}-react",
        model=policy.model,
        provider=policy.provider_name,
        turns=tuple(course.turns),
        achievements=tuple(name for turn in course.turns for name in turn.unlocked),
        total_reward=course.total_reward,
        env_steps=course.env_steps,
        stop_reason=stop,
        created_at=course.progress.started_at,
        tools=tools,
        metadata=_metadata(plan, not_applied),
    )
    return Played(rollout, course.observation, course.shaper, course.unlocked_at, course.episode.details, not_applied)


def _not_told(plan: Plan, turns: Sequence[Turn]) -> dict[str, str]:
    """What was asked of the model's server in vain."""
    without = sum(turn.reply.logprobs is None for turn in turns)
    if not plan.request.record.logprobs or not without:
        return {}
    return {"record.logprobs": f"the model's server did not tell them in {without} of {len(turns)} answers"}


def _metadata(plan: Plan, not_applied: Mapping[str, str]) -> dict[str, Any]:
    """What a trace keeps of the request beside the rollout itself."""
    request = plan.request
    env = request.env
    session = request.training_session_id or env.config.get("training_session_id")
    metadata: dict[str, Any] = {
        "policy_config": plan.policy.record(),
        "env_config": without_secrets(env.config),
        "mode": request.mode,
        "training_session_id": session,
        "synth_base_url": request.synth_base_url,
    }
    optional = {
        "env_id": env.env_id,
        "policy_id": request.policy.policy_id,
        "setup": plan.setup.record(),
        "not_applied": dict(not_applied),
        "trace_correlation_id": plan.correlation_id,
    }
    return metadata | {key: value for key, value in optional.items() if value}


class _Course:
    """An episode under way: what is left of it when the time is up."""

    def __init__(self, plan: Plan, episode: Episode | None, progress: Progress) -> None:
        self.plan, self.progress = plan, progress
        self._live = episode is not None
        self.episode = episode or plan.environment.start(plan.seed, plan.budget, plan.setup)
        styles = plan.environment.info.observations
        self._style = plan.policy.text_style if plan.policy.text_style in styles else styles[0]
        self.observation = self.episode.observe(self._style)
        self.shaper = None if plan.step_rewards is None else Shaper(plan.step_rewards, plan.environment.info)
        self._counters = self.episode.counters()
        self.turns: list[Turn] = []
        self.env_steps = 0
        self.total_reward = 0.0
        self.unlocked_at: dict[str, int] = {}

    async def run(self, prompter: Prompter, chat: ChatClient) -> StopReason:
        """Take turns until there is a reason to stop."""
        plan, policy, read = self.plan, self.plan.policy, self.plan.environment.read
        url = chat_url(policy.inference_url)
        shows_text = policy.observation != "image-only"
        while plan.max_turns is None or len(self.turns) < plan.max_turns:
            if self.progress.aborted:
                return StopReason.ABORTED
            picture = self.episode.picture(policy.image_pixels) if policy.shows_picture else None
            payload = prompter.request(self.observation if shows_text else "", picture)
            started_at = time.time()
            reply = await chat.complete(url, payload, deadline_s=CALL_SECONDS, key=policy.key)
            answer = refused_call(reply) or read(reply, policy)
            steps = await asyncio.to_thread(self._act, answer) if answer.slow else self._act(answer)
            self._keep(payload["messages"], reply, answer, steps, started_at)
            end = steps[-1].end
            if end is not None and (end.terminal or self._live):
                return end
            if self.env_steps >= plan.max_env_steps:
                return StopReason.ENV_LIMIT
            if end is not None:  # the budget that the limits allow together
                return StopReason.TURN_LIMIT
            prompter.remember(payload["messages"][-1], reply, answer, steps)
        return StopReason.TURN_LIMIT

    def _act(self, answer: Answer) -> list[Step]:
        """Play an answer: at least one step, until one ends the episode or stops the turn."""
        if not answer.actions:
            return [self.episode.unreadable(answer)]
        stop_on, steps = self.plan.policy.stop_on, []
        for action in answer.actions:
            step = self.episode.step(action)
            steps.append(step)
            if step.end is not None or (stop_on and _stops(step, stop_on) is not None):
                break
        return steps

    def _keep(
        self, messages: tuple[dict[str, Any], ...], reply: Reply, answer: Answer, steps: list[Step], started_at: float
    ) -> None:
        """Reward the turn and record it."""
        index, policy = len(self.turns), self.plan.policy
        actions = tuple([step.action for step in steps])
        unlocked = tuple([name for step in steps for name in step.unlocked])
        reward = sum([step.reward for step in steps])
        before, self._counters = self._counters, self.episode.counters()
        info: dict[str, Any] = {}
        if gains := _gains(before, self._counters):
            info["gains"] = gains
        if self.shaper is not None:
            reward, info["stepwise"] = self.shaper.reward(index, actions, unlocked, reward, before, self._counters)
        if answer.failure is not None:
            info["parse_failure_kind"] = answer.failure_kind
            if policy.parse_failure_penalty:
                reward -= policy.parse_failure_penalty
                info["parse_failure_penalty"] = policy.parse_failure_penalty
        if any([step.event for step in steps]):
            info["events"] = [step.event for step in steps]
        if rest := not_played(answer, steps):
            info["not_executed"] = list(rest)
            if (stopped := _stops(steps[-1], policy.stop_on)) is not None and len(steps) < len(answer.actions):
                info["stopped_on"] = stopped
        if answer.unknown:
            info["unknown_actions"] = list(answer.unknown)
        observation, self.observation = self.observation, self.episode.observe(self._style)
        if unlocked:
            for number, step in enumerate(steps, start=self.env_steps + 1):
                self.unlocked_at.update((name, number) for name in step.unlocked)
        self.env_steps += len(steps)
        self.total_reward += reward
        self.turns.append(
            Turn(
                index=index,
                messages=messages,
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
        progress = self.progress
        progress.turns, progress.env_steps, progress.reward = index + 1, self.env_steps, self.total_reward
        progress.achievements += unlocked


def _stops(step: Step, stop_on: tuple[str, ...]) -> str | None:
    """Which of `stop_on` happened in a step."""
    if step.hurt and "damage" in stop_on:
        return "damage"
    return "unlock" if step.unlocked and "unlock" in stop_on else None


def _gains(before: Counters, after: Counters) -> dict[str, dict[str, int]]:
    """`Turn.info["gains"]`: what changed, by table; empty tables are left out."""
    gains = {}
    for name, old, new in (
        ("inventory", before.inventory, after.inventory),
        ("achievements", before.achievements, after.achievements),
    ):
        if new != old:
            changes = {key: n - old.get(key, 0) for key, n in new.items() if n != old.get(key, 0)}
            changes.update({key: -n for key, n in old.items() if n and key not in new})
            gains[name] = changes
    return gains


def answer_of(plan: Plan, played: Played) -> bytes:
    """The wire's answer as JSON. Times are in the trace; requests and raw answers are not repeated in the steps."""
    rollout, shaper, record = played.rollout, played.shaper, plan.request.record
    turns = rollout.turns
    url = with_cid(plan.policy.inference_url, plan.correlation_id)
    details: dict[str, Any] = {
        "achievements": rollout.achievements,
        "unlocked_at": played.unlocked_at,
        "env_steps": rollout.env_steps,
        "stop_reason": rollout.stop_reason,
        "turn_rewards": [turn.reward for turn in turns],
        "parse_failures": sum(turn.parse_failure is not None for turn in turns),
        "tokens": {
            "prompt": sum(turn.reply.prompt_tokens for turn in turns),
            "completion": sum(turn.reply.completion_tokens for turn in turns),
        },
    }
    details |= played.details
    if setup := plan.setup.record():
        details["setup"] = setup
    if played.not_applied:
        details["not_applied"] = played.not_applied
    if shaper is not None:
        details["stepwise"] = shaper.summary()
    pipeline_metadata = {"inference_url": url}
    if plan.correlation_id is not None:
        pipeline_metadata["trace_correlation_id"] = plan.correlation_id
    trajectory = {
        "env_id": plan.request.env.env_id or f"{rollout.environment}::{rollout.seed}",
        "policy_id": plan.request.policy.policy_id or rollout.policy,
        "steps": [_step(plan, rollout, turn, url) for turn in turns] if record.trajectories else [],
        "final": {"observation": {"text": played.final_observation}},
        "length": len(turns),
        "inference_url": url,
        "decision_samples": None if shaper is None else shaper.samples,
    }
    answer = {
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
        "aborted": rollout.stop_reason in (StopReason.TIME_LIMIT, StopReason.ABORTED),
        "ops_executed": 2 * len(turns),
        "trace_correlation_id": plan.correlation_id or f"trace_{rollout.run_id}",
        "trace": trace_payload(rollout, record.trace_format) if record.return_trace else None,
        "pipeline_metadata": pipeline_metadata,
    }
    return dumps(answer).encode()


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
