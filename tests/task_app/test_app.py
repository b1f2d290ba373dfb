"""The routes around /rollout: keys, health, tasks, and refusals that name the field."""

from __future__ import annotations

import logging

import orjson
import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

import task_app.requests
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.settings import Settings
from task_app.app import __doc__ as ROUTES
from task_app.app import make_app


def api_routes(routes):
    """Every route of ours, those of included routers as well."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from api_routes(route.original_router.routes)


KEY, ALIAS = "sk_env_0123456789abcdef", "sk_env_alias_of_old"
OPEN = {"/", "/livez"}
JSON = {"Content-Type": "application/json"}
CLOSED = [
    (method, route.path.replace("{run_id:path}", "run"))
    for route in api_routes(make_app(settings=Settings(_env_file=None)).routes)
    for method in route.methods
    if route.path not in OPEN
]


@pytest.fixture
def open_app(serve, make_chat):
    return serve(make_chat("do"))


@pytest.fixture
def closed_app(serve, make_chat):
    return serve(make_chat("do"), api_keys=[KEY, ALIAS])


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": KEY},
        {"X-API-Keys": f"other, {KEY}"},
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer stale,{KEY}"},
        {"X-API-Key": "stale", "Authorization": f"Bearer {KEY}"},
        {"X-API-Key": ALIAS},
        {"X-API-Keys": f"{ALIAS},stale"},
    ],
)
def test_the_key_travels_in_any_of_three_headers(closed_app, headers):
    answer = closed_app.get("/health", headers=headers)
    assert answer.json() == {"healthy": True, "status": "healthy", "auth": {"required": True}}


@pytest.mark.parametrize(
    "headers",
    [{}, {"X-API-Key": "wrong"}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": KEY[:15]}, {"X-API-Keys": " , ,"}],
)
def test_without_a_right_key_every_route_is_401_and_nothing_leaks(closed_app, caplog, headers):
    for method, path in CLOSED:
        with caplog.at_level(logging.DEBUG):
            answer = closed_app.request(method, path, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", path
        error = answer.json()["detail"]["error"]
        assert error["code"] == "unauthorised" and set(error) == {"code", "message"}
        assert KEY[:6] not in answer.text + str(answer.headers) + caplog.text


def test_every_route_is_in_the_list_that_opens_the_file():
    paths = {path for _, path in CLOSED} | OPEN
    assert len(paths) > 15 and not [path for path in paths if path.removesuffix("/run") not in ROUTES]


def test_what_is_set_is_told_as_booleans(serve, make_chat):
    settings = Settings(_env_file=None, openai_api_key="sk-openai-123456", groq_api_key=None)
    answer = serve(make_chat("do"), api_keys=[KEY], settings=settings).get("/debug/env", headers={"X-API-Key": KEY})
    wanted = {"has_ENVIRONMENT_API_KEY": True, "has_OPENAI_API_KEY": True, "has_GROQ_API_KEY": False}
    assert answer.json() == wanted and "sk-" not in answer.text


def test_the_health_of_rollouts_asks_for_a_key(closed_app):
    answer = closed_app.get("/health/rollout", headers={"X-API-Key": KEY})
    assert answer.json() == {"ok": True, "authorized": True}


@pytest.mark.parametrize("path", sorted(OPEN))
def test_liveness_is_open_and_shows_no_key(closed_app, path):
    answer = closed_app.get(path)
    assert answer.status_code == 200 and answer.json()["status"] == "ok" and KEY[:4] not in answer.text


def test_head_of_the_root_answers(open_app):
    assert open_app.head("/").status_code == 200


def test_done_names_the_service(open_app):
    assert open_app.post("/done").json() == {"ok": True, "service": "grpo-crafter"}


def test_info_is_json_all_the_way_down(open_app):
    info = open_app.get("/info").json()
    assert info["dataset"]["id"] == "crafter_classic_procedural" and info["limits"]["max_ops"] == 100_000
    assert sum(c["weight"] for c in info["rubrics"]["outcome"]["criteria"]) == pytest.approx(1.0)


def test_task_info_without_seed_is_the_taskset_and_the_task(open_app):
    told = open_app.get("/task_info").json()
    assert told["taskset"]["default_seed"] == 42
    assert told["environment"] == "crafter" and told["task"]["id"] == "crafter_classic", "one published client wants it"


def test_task_info_of_a_seed_tells_its_world(open_app):
    task = open_app.get("/task_info", params={"seed": 1}).json()
    assert task["observation"]["seed"] == 1 and task["observation"]["traits"]["trees"] > 0
    assert task["environment"] == "crafter" and len(task["action_space"]["actions"]) == 17


def test_task_info_of_several_seeds_is_a_list(open_app):
    tasks = open_app.get("/task_info?seed=1&seeds=2").json()
    assert [t["dataset"]["seed"] for t in tasks] == [1, 2]


def test_task_info_of_no_integer_is_422(open_app):
    assert open_app.get("/task_info?seed=x").status_code == 422


def test_an_alias_serves_the_same_app(serve, make_chat):
    assert serve(make_chat("do"), app="crafter").get("/").json()["service"] == "grpo-crafter"


def test_an_unknown_app_names_the_known_ones():
    with pytest.raises(ConfigError, match="grpo-crafter"):
        make_app("grpo-chess")


@pytest.mark.parametrize(
    ("change", "field", "hint"),
    [
        ({"run_id": None}, "run_id", "string"),
        ({"run_id": ""}, "run_id", "1 character"),
        ({"mode": "train"}, "mode", "'rl' or 'eval'"),
        ({"policy": {"model": None}}, "policy.config.model", "name of the chat model"),
        ({"policy": {"inference_url": None}}, "policy.config.inference_url", "groq or openai"),
        ({"policy": {"inference_url": "file:///etc/passwd"}}, "policy.config.inference_url", "http"),
        ({"policy": {"observation": "verbose"}}, "policy.config.observation", "'compact'"),
        ({"policy": {"temperature": -1}}, "policy.config.temperature", "greater than"),
        ({"env": {"max_env_steps": 0}}, "env.config.max_env_steps", "from 1 on to 10000"),
        ({"env": {"max_env_steps": True}}, "env.config.max_env_steps", "integer"),
        (
            {"env": {"env_params": {"max_steps_per_episode": "many"}}},
            "env.config.env_params.max_steps_per_episode",
            "int",
        ),
        ({"ops": ["agent", "dance"]}, "ops.1", "dance"),
        ({"ops": ["env"]}, "ops", "agent"),
        ({"seed": -1}, "env.seed", "greater than"),
    ],
)
def test_a_wrong_field_is_named(open_app, make_body, change, field, hint):
    answer = open_app.post("/rollout", json=make_body(**change))
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["detail"]
    assert ".".join(map(str, error["loc"])) == f"body.{field}" and hint in error["msg"]


def test_a_missing_run_id_is_named(open_app):
    (error,) = open_app.post("/rollout", json={}).json()["detail"]
    assert error["loc"] == ["body", "run_id"] and error["type"] == "missing"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'"\xff"', b'{"seed": NaN}', b'{"seed": Infinity}', b"[" * 5000]
)
def test_a_body_that_is_no_json_object_is_422(open_app, content):
    for path in ("/rollout", "/create", "/run/abort", "/proxy/v1/chat/completions"):
        answer = open_app.post(path, content=content, headers=JSON)
        assert answer.status_code == 422, answer.text
        (error,) = answer.json()["detail"]
        assert error["loc"] == ["body"] and "JSON" in error["msg"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_another_content_type_is_415(open_app, make_body, kind):
    answer = open_app.post(
        "/rollout", content=orjson.dumps(make_body()), headers={"Content-Type": kind} if kind else {}
    )
    assert answer.status_code == 415 and answer.json()["detail"]["error"]["code"] == "not_json"


@pytest.mark.parametrize("declared", [True, False])
def test_a_large_body_is_413(open_app, make_body, declared):
    content = orjson.dumps(make_body(junk="x" * 2_000_000))
    answer = open_app.post("/rollout", content=content if declared else iter([content]), headers=JSON)
    assert answer.status_code == 413 and "2,000,000 bytes" in answer.text


async def test_a_body_that_does_not_come_is_408(monkeypatch):
    import asyncio

    monkeypatch.setattr(task_app.requests, "BODY_SECONDS", 0.01)
    sent: list = []

    async def receive() -> dict:
        await asyncio.sleep(60)
        return {}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/rollout", "query_string": b"", "http_version": "1.1"}
    scope |= {"headers": [(b"content-type", b"application/json")], "scheme": "http", "server": ("test", 80)}
    await make_app(settings=Settings(_env_file=None))(scope, receive, send)
    assert sent[0]["status"] == 408


def test_a_bug_answers_500_without_its_words(serve, make_chat, monkeypatch):
    app = serve(make_chat("do")).app
    monkeypatch.setattr(app.state.desk, "abort", lambda run_id: 1 / 0)
    client = TestClient(app, raise_server_exceptions=False)
    answer = client.post("/run/abort", json={"run_id": "r"})
    assert answer.status_code == 500 and answer.json()["detail"]["error"]["code"] == "internal_error"
    assert "division" not in answer.text


def test_traces_that_cannot_be_written_are_said(serve, make_chat, make_body, trace_rows):
    app = serve(make_chat("do " + "x" * 100_000))
    app.app.state.desk._store._connection.execute("PRAGMA max_page_count = 1")  # as on a full disk
    answer = app.post("/rollout", json=make_body())
    assert answer.status_code == 503 and answer.json()["detail"]["error"]["code"] == "traces_unavailable"
    assert "full" in answer.text and trace_rows("SELECT count(*) FROM session_traces") == [(0,)]


def test_another_environment_s_task_is_refused(open_app, make_body):
    body = make_body()
    body["env"]["env_name"] = "math"
    answer = open_app.post("/rollout", json=body)
    assert answer.status_code == 422 and "plays crafter" in answer.text


@pytest.mark.parametrize(("provider", "host"), [("groq", "api.groq.com"), ("openai", "api.openai.com")])
def test_a_provider_stands_for_its_public_address(serve, make_chat, make_body, provider, host):
    chat = make_chat("do")
    serve(chat).post("/rollout", json=make_body(policy={"inference_url": None, "provider": provider}))
    assert chat.requests[0].url.host == host and chat.requests[0].url.path.endswith("/v1/chat/completions")
