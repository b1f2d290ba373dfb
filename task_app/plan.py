"""A rollout request, read: what is to be played, within which limits, and what of the request does not apply."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from crafter_pipeline.clients.chat import tells_logprobs
from crafter_pipeline.contracts import RolloutRequest
from crafter_pipeline.errors import FieldError, suggest
from crafter_pipeline.rewards import StepRewards, read_step_rewards
from crafter_pipeline.vision import sees_images
from task_app.environments.protocol import Environment, Setup
from task_app.policies import TOOL_CHOICES, Policy, read_policy

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
    not_applied: Mapping[str, str]
    """Dotted field of the request -> why it has no effect here."""
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
    if asked not in names:
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
    _check_prompt(policy, environment)
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
        not_applied=dict(_not_applied(request, policy, environment)),
        digest=_digest(request),
    )


def _check_prompt(policy: Policy, environment: Environment) -> None:
    """FieldError where the model or the environment cannot take part in what the policy asks for."""
    if policy.shows_picture:
        if not environment.has_pictures:
            raise FieldError("policy.config.observation", f"{environment.info.name} has no pictures; ask for text")
        if sees_images(policy.model) is False:
            raise FieldError(
                "policy.config.model",
                f"{policy.model} reads text only: name a model that takes pictures, or ask for an observation as text "
                f"({', '.join(environment.info.observations)})",
            )
    if isinstance(policy.tool_choice, dict):
        function = policy.tool_choice.get("function")
        named = function.get("name") if isinstance(function, dict) else None
        if policy.tool_choice.get("type") != "function" or not isinstance(named, str):
            raise FieldError("policy.config.tool_choice", TOOL_CHOICES)
        if named != environment.info.tool_name:
            raise FieldError(
                "policy.config.tool_choice.function.name",
                f"there is no tool {named!r}; the tool is {environment.info.tool_name}",
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
    if not isinstance(name, str) or (name not in _AGENT_OPS and name not in _ENV_OPS):
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
        *(["logprobs"] if record.logprobs else []),  # so that digests of requests without are what they were
    )
    try:
        text = orjson.dumps(facts, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # an integer beyond 64 bits
        text = json.dumps(facts, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()[:16]


# --------------------------------------------------------------------------- what does not apply

_UNKNOWN = "unknown to this task app"
_ENV_READ = frozenset({"max_env_steps", "env_params", "step_rewards", "training_session_id"})
_ENV_REASONS = {
    "split": "the seeds are one split",
    "index": "env.seed says which task is played",
}
_POLICY_READ = frozenset(Policy.model_fields) | {"max_completion_tokens", "use_vision", "image_only_mode"}
_HEADERS = "the headers of a model call are the task app's own"
_STANDARD = "only standard fields are sent to the model"
_POLICY_REASONS = {
    "headers": _HEADERS,
    "extra_headers": _HEADERS,
    "extra_body": _STANDARD,
    "chat_template_kwargs": "send thinking_mode and thinking_budget instead",
    "stop_after_tool_calls": _STANDARD,
    "parallel_tool_calls": _STANDARD,
    "max_turns": "model calls are limited by max_llm_calls",
}


def _not_applied(request: RolloutRequest, policy: Policy, environment: Environment) -> Iterator[tuple[str, str]]:
    """(dotted field, reason) of everything that was sent and has no effect. Values are not told: some are secrets."""
    env, config = request.env, request.policy.config
    for parent, extra in (
        ("", request.model_extra),
        ("env.", env.model_extra),
        ("policy.", request.policy.model_extra),
        ("record.", request.record.model_extra),
        ("safety.", request.safety.model_extra),
    ):
        for key in extra or ():
            yield parent + key, _UNKNOWN
    yield from _env_not_applied(env.config, config, environment, live=env.env_id is not None)
    if request.record.logprobs and not tells_logprobs(policy.inference_url, policy.model):
        yield "record.logprobs", f"{policy.provider_name} does not tell them for {policy.model}"
    if request.record.value:
        yield "record.value", "there is no value model"
    for key, value in config.items():
        if key not in _POLICY_READ and value is not None:
            yield f"policy.config.{key}", _POLICY_REASONS.get(key, _UNKNOWN)
    yield from _policy_not_applied(config, policy, environment)


def _env_not_applied(
    config: Mapping[str, Any], policy_config: Mapping[str, Any], environment: Environment, *, live: bool
) -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if value is None:
            continue
        if key in environment.config_keys:
            if live:
                yield f"env.config.{key}", "the environment is live: it was set up when it was created"
        elif key not in _ENV_READ:
            yield f"env.config.{key}", _ENV_REASONS.get(key, _UNKNOWN)
    params = config.get("env_params")
    for key in params if isinstance(params, dict) else ():
        if key != "max_steps_per_episode":
            yield f"env.config.env_params.{key}", _UNKNOWN
    if params is not None and not isinstance(params, dict):
        yield "env.config.env_params", "it is no table"
    if config.get("step_rewards") is not None and policy_config.get("step_rewards") is not None:
        yield "env.config.step_rewards", "policy.config.step_rewards is given as well"


def _policy_not_applied(
    config: Mapping[str, Any], policy: Policy, environment: Environment
) -> Iterator[tuple[str, str]]:
    info = environment.info
    if policy.text_style not in info.observations and "observation" in config:
        yield "policy.config.observation", f"{info.name} shows itself as {', '.join(info.observations)}"
    if config.get("observation") is not None:
        for switch in ("use_vision", "image_only_mode"):
            if config.get(switch) and not policy.shows_picture:
                yield f"policy.config.{switch}", "observation is given as well"
    if config.get("max_completion_tokens") not in (None, policy.max_tokens):
        yield "policy.config.max_completion_tokens", "max_tokens is given as well"
    if policy.tool_choice is not None and not policy.use_tools:
        yield "policy.config.tool_choice", "no tool is offered: use_tools is false"
    if policy.api_key is not None and policy.key is None:
        yield "policy.config.api_key", "inference_url holds user and password"
    for key in ("provider", "vendor"):
        named = str(config.get(key) or policy.provider_name).lower()
        if config.get("inference_url") is not None and named != policy.provider_name:
            yield f"policy.config.{key}", "inference_url says where the model is"
    if policy.image_pixels != Policy.model_fields["image_pixels"].default and not policy.shows_picture:
        yield "policy.config.image_pixels", "the observation holds no picture"
    if policy.provider_name != "custom":
        refuses = f"{policy.provider_name} takes no chat_template_kwargs; reasoning_effort is its field"
        if policy.thinking_budget is not None:
            yield "policy.config.thinking_budget", refuses
        if policy.thinking_mode == "think":
            yield "policy.config.thinking_mode", refuses
