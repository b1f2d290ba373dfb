"""The routes around /rollout: keys, health, tasks, and refusals that name the field."""

from __future__ import annotations

import pytest

from crafter_pipeline.errors import ConfigError
from task_app.app import make_app

KEY = "sk_env_0123456789abcdef"
CLOSED = [("GET", "/health"), ("GET", "/info"), ("GET", "/task_info"), ("POST", "/rollout"), ("POST", "/done")]


@pytest.fixture
def open_app(serve, make_chat):
    return serve(make_chat("do"))


@pytest.fixture
def closed_app(serve, make_chat):
    return serve(make_chat("do"), api_key=KEY)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": KEY},
        {"X-API-Keys": f"other, {KEY}"},
        {"Authorization": f"Bearer {KEY}"},
        {"X-API-Key": "stale", "Authorization": f"Bearer {KEY}"},
    ],
)
def test_the_key_travels_in_any_of_three_headers(closed_app, headers):
    answer = closed_app.get("/health", headers=headers)
    assert answer.json() == {"healthy": True, "status": "healthy", "auth": {"required": True}}


@pytest.mark.parametrize(
    "headers", [{}, {"X-API-Key": "wrong"}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": KEY[:15]}]
)
@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_a_wrong_key_is_401_and_nothing_leaks(closed_app, method, path, headers):
    answer = closed_app.request(method, path, headers=headers)
    assert answer.status_code == 401
    error = answer.json()["detail"]["error"]
    assert error["code"] == "unauthorised" and set(error) == {"code", "message"}
    assert KEY[:6] not in answer.text and KEY[:6] not in str(answer.headers)


@pytest.mark.parametrize("path", ["/", "/livez"])
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


def test_task_info_without_seed_is_the_taskset(open_app):
    assert open_app.get("/task_info").json()["taskset"]["default_seed"] == 42


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
        ({"policy": {"observation": "verbose"}}, "policy.config.observation", "'sparse', 'compact' or 'rich'"),
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


def test_a_body_that_is_no_json_is_422(open_app):
    assert open_app.post("/rollout", content=b"{").status_code == 422


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
