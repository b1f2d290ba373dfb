"""The routes of the live environments; what they do is in `live`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import AliasChoices, Field

from crafter_pipeline.answers import Answer
from crafter_pipeline.contracts import MAX_SEED, Reply, Wire
from crafter_pipeline.environments import CRAFTER
from crafter_pipeline.errors import FieldError, suggest
from crafter_pipeline.rewards import read_step_rewards
from task_app.environments import Environment
from task_app.live import LiveEnvironment, LiveEnvironments, LiveSetup
from task_app.plan import MAX_ENV_STEPS
from task_app.policies import Policy
from task_app.requests import JSON, read_body, takes

MAX_CHILDREN = 64
_CLIENT = Policy(model="client", inference_url="http://client.invalid/v1", use_tools=True)
"""How tool calls are read that a client sends itself."""

Id = Field(min_length=1, max_length=200)


class LiveConfig(Wire):
    """`config` of a live environment. Further keys are the environment's own."""

    max_env_steps: int = Field(default=MAX_ENV_STEPS, ge=1, le=MAX_ENV_STEPS)
    observation: str | None = None
    """Style of the observation's text; default: the environment's first."""
    step_rewards: dict[str, Any] | None = None


class CreateRequest(Wire):
    env_name: str | None = Field(default=None, max_length=200)
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    config: LiveConfig = Field(default_factory=LiveConfig)
    world_config: str | dict[str, Any] | None = None
    """The older way to say `config.difficulty` (a name) or `config.world` (knobs)."""
    rl_run_id: str | None = Field(default=None, max_length=200)


class EnvRequest(Wire):
    env_id: str = Id


class ResetRequest(EnvRequest):
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)


class ToolCall(Wire):
    """One call in any of the wire's forms."""

    tool: str = Field(validation_alias=AliasChoices("tool_name", "tool", "name"))
    arguments: dict[str, Any] = Field(validation_alias=AliasChoices("arguments", "args"))


class StepRequest(EnvRequest):
    tool_calls: list[ToolCall] = Field(min_length=1, max_length=16)


class Action(Wire):
    """Tool calls, or plain actions."""

    tool_calls: list[ToolCall] = Field(default_factory=list, max_length=16)
    actions: list[str] = Field(default_factory=list, max_length=100)


class ActionRequest(EnvRequest):
    action: Action


class RestoreRequest(Wire):
    snapshot_id: str = Id


class BranchRequest(Wire):
    env_ids: list[str] = Field(min_length=1, max_length=MAX_CHILDREN)
    num_children: int = Field(default=1, ge=1, le=MAX_CHILDREN)


MODELS = (CreateRequest, EnvRequest, ResetRequest, StepRequest, ActionRequest, RestoreRequest, BranchRequest)


def add_live_routes(router: APIRouter, lives: LiveEnvironments) -> None:
    """/create, /step and their kin; for Crafter the older /CrafterClassic/… as well."""
    environment = lives.environment

    async def create(request: Request) -> Response:
        body = await read_body(request, CreateRequest)
        return _json(lives.create(body.seed or 0, read_setup(body, environment)).view())

    async def step(request: Request) -> Response:
        body = await read_body(request, StepRequest)
        live = lives.get(body.env_id)
        return _json(await _step(live, read_calls(body.tool_calls, environment, "tool_calls")))

    async def step_action(request: Request) -> Response:
        body = await read_body(request, ActionRequest)
        live, action = lives.get(body.env_id), body.action
        calls = action.tool_calls
        if action.actions:
            info = environment.info
            calls = [ToolCall(tool=info.tool_name, arguments=info.tool_arguments(action.actions))]
        return _json(await _step(live, read_calls(calls, environment, "action")))

    async def reset(request: Request) -> Response:
        body = await read_body(request, ResetRequest)
        live = lives.get(body.env_id)
        live.reset(body.seed)
        return _json(live.view())

    async def terminate(request: Request) -> Response:
        lives.drop((await read_body(request, EnvRequest)).env_id)
        return _json({"ok": True})

    async def snapshot(request: Request) -> Response:
        body = await read_body(request, EnvRequest)
        snapshot_id, kept = lives.snapshot(body.env_id)
        facts = {"path": None, "rl_run_id": kept.how.rl_run_id, "size": len(kept.episode)}  # no path: kept in memory
        return _json({"snapshot_id": snapshot_id, **facts})

    async def restore(request: Request) -> Response:
        return _json(lives.restore((await read_body(request, RestoreRequest)).snapshot_id).view())

    async def branch(request: Request) -> Response:
        body = await read_body(request, BranchRequest)
        return _json({"branches": lives.branch(body.env_ids, body.num_children)})

    def add(path: str, handler: Any, model: type[Wire]) -> None:
        router.add_api_route(path, handler, methods=["POST"], openapi_extra=takes(model))

    add("/create", create, CreateRequest)
    add("/step", step, StepRequest)
    add("/reset", reset, ResetRequest)
    add("/terminate", terminate, EnvRequest)
    add("/snapshot", snapshot, EnvRequest)
    add("/restore", restore, RestoreRequest)
    add("/branch", branch, BranchRequest)
    if environment.info is CRAFTER:
        add("/CrafterClassic/initialize", create, CreateRequest)
        add("/CrafterClassic/step", step_action, ActionRequest)
        add("/CrafterClassic/terminate", terminate, EnvRequest)


def read_setup(body: CreateRequest, environment: Environment) -> LiveSetup:
    """How a live environment is to be. FieldError names the field that is wrong."""
    info, config = environment.info, body.config
    names, asked = (info.name, *info.app_names), (body.env_name or info.name).lower()
    if asked not in names:
        raise FieldError("env_name", f"this task app plays {info.name}, not {asked!r}; {suggest(asked, names)}")
    style = config.observation or info.observations[0]
    if style not in info.observations:
        raise FieldError("config.observation", f"there is no {style!r}; {suggest(style, info.observations)}")
    own: dict[str, Any] = dict(config.model_extra or {})
    if body.world_config is not None:
        own.setdefault("difficulty" if isinstance(body.world_config, str) else "world", body.world_config)
    try:
        setup = environment.prepare(own)
    except FieldError as e:
        raise e.below("config") from None
    try:
        step_rewards = read_step_rewards(config.step_rewards, info.achievements)
    except FieldError as e:
        raise e.below("config.step_rewards") from None
    not_applied = tuple(key for key in own if key not in environment.config_keys)
    return LiveSetup(setup, config.max_env_steps, style, step_rewards, body.rl_run_id, not_applied)


async def _step(live: LiveEnvironment, answer: Answer) -> dict[str, Any]:
    """Play an answer; what may take long in a thread, and nobody else plays meanwhile."""
    if not answer.slow:
        return live.step(answer.actions)
    live.busy = True
    try:
        return await asyncio.to_thread(live.step, answer.actions)
    finally:
        live.busy = False


def read_calls(calls: Sequence[ToolCall], environment: Environment, field: str) -> Answer:
    """The actions of tool calls, read as a model's are. FieldError if one is unknown or too many: nothing is played."""
    wire = tuple(
        {"id": f"call_{i}", "type": "function", "function": {"name": call.tool, "arguments": call.arguments}}
        for i, call in enumerate(calls)
    )
    answer = environment.read(Reply(content="", tool_calls=wire), _CLIENT)
    if answer.failure is not None:
        raise FieldError(field, answer.failure)
    if answer.unknown:
        hint = suggest(answer.unknown[0], environment.info.actions)
        raise FieldError(field, f"there is no action {answer.unknown[0]!r}; {hint}")
    if answer.dropped:
        raise FieldError(field, f"send at most {environment.info.max_actions} actions at once")
    return answer


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type=JSON)
