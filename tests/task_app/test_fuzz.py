"""Whatever is sent, and whatever a model answers: never a 500, never a junk session.

Two kinds of nonsense: what follows the OpenAPI document or breaks it (schemathesis), and requests that would be right
but for one value somewhere (hypothesis). The quick runs draw the same examples each time, the slow ones new ones.
"""

from __future__ import annotations

import copy
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.settings import Settings
from task_app.app import make_app

HEALTHY = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
QUICK = settings(max_examples=50, derandomize=True, database=None, deadline=None, suppress_health_check=HEALTHY)
LONG = settings(max_examples=1500, database=None, deadline=None, suppress_health_check=HEALTHY)
REFUSED_BY_DESIGN = {502, 503}
"""A model host that is not there; no key for the vendor."""


class AnyModel:
    """A chat model that says what it is told to, next to raw bytes."""

    def __init__(self) -> None:
        self.answer: bytes | dict[str, Any] = {"content": "do"}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if isinstance(self.answer, bytes):
            return httpx.Response(200, content=self.answer)
        choice = {"index": 0, "message": {"role": "assistant", **self.answer}, "finish_reason": "stop"}
        return httpx.Response(200, content=orjson.dumps({"choices": [choice]}, default=str))


class World:
    """A task app with its model and its trace database."""

    def __init__(self, app_name: str, folder: Any) -> None:
        self.model = AnyModel()
        chat = ChatClient(Settings(_env_file=None), transport=httpx.MockTransport(self.model), tries=1)
        self.app = make_app(
            app_name, trace_db=folder / "t.db", chat=chat, settings=Settings(_env_file=None, openai_api_key=None)
        )
        self.client = TestClient(self.app, raise_server_exceptions=True)
        document = schemathesis.openapi.from_dict(self.app.openapi())
        self.operations = [result.ok() for result in document.get_all_operations()]
        self.number = 0

    def post(self, path: str, body: Any) -> httpx.Response:
        """The answer; an exception in the app is raised here."""
        headers = {"Content-Type": "application/json"}
        return self.client.post(path, content=json.dumps(body).encode(), headers=headers)

    def rollout(self, **change: Any) -> dict[str, Any]:
        """A request that is right and takes two turns."""
        self.number += 1
        config = {"model": "m", "inference_url": "http://model.test/v1", "use_tools": True, "temperature": 0.5}
        config |= {"max_llm_calls": 2, "history": 1, "max_tokens": 10, "observation": None, "thinking_mode": None}
        shaping = {"enabled": True, "mode": "decision_stepwise", "strategy": "consistent", "weights": {}}
        return {
            "run_id": f"fuzz-{self.number}",
            "mode": "eval",
            "env": {"env_name": None, "seed": 3, "config": {"max_env_steps": 3, "step_rewards": shaping}},
            "policy": {"policy_id": None, "policy_name": "p", "config": config},
            "ops": ["agent", {"type": "env"}],
            "record": {"trajectories": True, "return_trace": True, "trace_format": "structured", "store": True},
            "on_done": "reset",
            "safety": {"max_ops": 10, "max_time_s": 5.0},
            **change,
        }

    def junk(self) -> list[Any]:
        """Sessions that no finished rollout left."""
        db = sqlite3.connect(self.app.state.trace_db)
        try:
            return db.execute(
                "SELECT session_id FROM session_traces WHERE num_timesteps = 0 OR session_id NOT IN "
                "(SELECT session_id FROM rollout_answers) OR session_id NOT IN (SELECT session_id FROM outcome_rewards)"
            ).fetchall()
        finally:
            db.close()


@pytest.fixture(scope="module", params=["grpo-crafter", "math"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(request.param, tmp_path_factory.mktemp("fuzz"))
    with made.client:
        yield made
        assert made.junk() == []


def check_document(world: World, data: st.DataObject) -> None:
    operation = data.draw(st.sampled_from(world.operations))
    case = data.draw(operation.as_strategy(generation_mode=data.draw(st.sampled_from(list(GenerationMode)))))
    answer = world.client.request(**case.as_transport_kwargs(base_url="http://testserver"))
    assert answer.status_code < 500 or answer.status_code in REFUSED_BY_DESIGN, answer.text


@QUICK
@given(data=st.data())
def test_the_document_s_requests_and_their_opposites(world: World, data: st.DataObject) -> None:
    check_document(world, data)


@pytest.mark.slow
@LONG
@given(data=st.data())
def test_many_of_the_document_s_requests_and_their_opposites(world: World, data: st.DataObject) -> None:
    check_document(world, data)


# --------------------------------------------------------------------------- one wrong value

NUMBERS = st.one_of(st.integers(), st.sampled_from([2**31, 2**63, 2**64, 2**200, -1, 0]), st.floats())
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(), st.sampled_from(["\ud800", "\x00", "é" * 300]))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
LIVE = {
    "/create": {"env_name": "crafter", "seed": 3, "config": {"max_env_steps": 9, "observation": "compact"}},
    "/step": {"env_id": "ID", "tool_calls": [{"tool": "interact_many", "args": {"actions": ["noop"]}}]},
    "/reset": {"env_id": "ID", "seed": 4},
    "/snapshot": {"env_id": "ID"},
    "/restore": {"snapshot_id": "ID"},
    "/branch": {"env_ids": ["ID"], "num_children": 2},
    "/CrafterClassic/step": {"env_id": "ID", "action": {"actions": ["noop"]}},
    "/run/abort": {"run_id": "ID"},
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value that another value can take."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with `new` at a place."""
    copied = copy.deepcopy(value)
    at = copied
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return copied


def spoil(data: st.DataObject, body: dict[str, Any]) -> dict[str, Any]:
    """The body with another value at one or two places."""
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(sorted(places(body), key=str)))
        body = put(body, path, data.draw(VALUES))
    return body


def check_rollout(world: World, data: st.DataObject) -> None:
    world.model.answer = {"content": "do"}
    answer = world.post("/rollout", spoil(data, world.rollout()))
    assert answer.status_code in (200, 404, 409, 422, 502), answer.text
    if answer.status_code == 422:
        assert answer.json()["detail"][0]["msg"]


@QUICK
@given(data=st.data())
def test_rollouts_with_a_wrong_value(world: World, data: st.DataObject) -> None:
    check_rollout(world, data)


@pytest.mark.slow
@LONG
@given(data=st.data())
def test_many_rollouts_with_a_wrong_value(world: World, data: st.DataObject) -> None:
    check_rollout(world, data)


def check_live(world: World, path: str, data: st.DataObject) -> None:
    env_id = world.post("/create", {"seed": 3}).json()["env_id"]
    body = json.loads(json.dumps(LIVE[path]).replace("ID", env_id))
    answer = world.post(path, spoil(data, body))
    assert answer.status_code in (200, 404, 409, 422), answer.text
    world.post("/terminate", {"env_id": env_id})


@pytest.mark.parametrize("path", sorted(LIVE))
@QUICK
@given(data=st.data())
def test_live_environments_with_a_wrong_value(world: World, path: str, data: st.DataObject) -> None:
    check_live(world, path, data)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(LIVE))
@LONG
@given(data=st.data())
def test_many_live_environments_with_a_wrong_value(world: World, path: str, data: st.DataObject) -> None:
    check_live(world, path, data)


# --------------------------------------------------------------------------- nonsense of the model

CALL = {"id": "c", "type": "function", "function": {"name": "interact_many", "arguments": '{"actions": ["noop"]}'}}
MESSAGE = {"content": "do", "reasoning_content": "hm", "tool_calls": [CALL]}


def check_model(world: World, data: st.DataObject) -> None:
    world.model.answer = data.draw(st.one_of(st.binary(max_size=50), st.just({})))
    if world.model.answer == {}:
        world.model.answer = json.loads(json.dumps(spoil(data, MESSAGE)), parse_constant=str)
        try:
            orjson.dumps(world.model.answer)
        except TypeError:  # not sayable in JSON: say it as raw bytes
            world.model.answer = json.dumps({"choices": [{"message": world.model.answer}]}).encode()
    policy = {"config": {"model": "m", "inference_url": "http://model.test", "use_tools": data.draw(st.booleans())}}
    body = world.rollout()
    body["policy"]["config"] |= policy["config"]
    answer = world.post("/rollout", body)
    assert answer.status_code in (200, 502), answer.text
    if answer.status_code == 502:
        assert answer.json()["detail"]["error"]["code"].startswith("model_")


@QUICK
@given(data=st.data())
def test_a_model_that_answers_nonsense(world: World, data: st.DataObject) -> None:
    check_model(world, data)


@pytest.mark.slow
@LONG
@given(data=st.data())
def test_a_model_that_answers_much_nonsense(world: World, data: st.DataObject) -> None:
    check_model(world, data)
