"""`POST /judge/v1/score`: who judges, by which rubric, and what is refused."""

from __future__ import annotations

import json
import sqlite3

import httpx
import pytest
from starlette.testclient import TestClient

from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn
from crafter_pipeline.game import Game, render_text
from crafter_pipeline.traces.wire import trace_payload
from train_app.app import make_app

PATHS = ("/api/judge/v1/score", "/api/v1/judge/v1/score")
RUBRIC = {"outcome": [{"id": "survival_state"}], "event": [{"id": "execution_quality"}]}
SKILL = {"outcome": [{"id": "skill", "description": "Plays well."}]}


def played():
    """Four turns on seed 3, two of them without effect."""
    game, turns = Game(3, max_steps=4), []
    for i, action in enumerate(("noop", "move_left", "move_right", "make_iron_sword")):
        before = render_text(game.observe(), "sparse")
        game.step(action)
        after = render_text(game.observe(), "sparse")
        message = {"role": "user", "content": before}
        turns.append(Turn(i, (message,), Reply(action), (action,), None, 0.0, (), i, i + 0.5, before, after))
    return Rollout(
        "run-1", "crafter", 3, "crafter-react", "policy", "custom", tuple(turns), (), 0.0, 4, StopReason.TURN_LIMIT, 1.0
    )


def body(*, trace=None, rubric=RUBRIC, app=None, **options):
    return {
        "policy_name": "crafter-react",
        "task_app": {"id": "crafter", **(app or {})},
        "trace": trace_payload(played(), "structured") if trace is None else trace,
        **({} if rubric is None else {"rubric": rubric}),
        "options": {"provider": "local", "model": "programmatic", **options},
    }


def said(content, status=200):
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return httpx.Response(status, json={"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    """One service for all that changes nothing; task apps: none.test has no rubrics, broken.test none that is one."""

    def task_app(request):
        match request.url.host:
            case "none.test":
                return httpx.Response(200, json={"rubrics": None})
            case "broken.test":
                return httpx.Response(200, json={"rubrics": {"outcome": 3}})
        raise httpx.ConnectError("nobody there")

    app = make_app(tmp_path_factory.mktemp("data"), api_key=None, task_app_transport=httpx.MockTransport(task_app))
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
def test_a_program_scores_turns_and_outcome_in_the_wires_shape(backend, path):
    answer = backend.post(path, json=body())
    assert answer.status_code == 200, answer.text
    result = answer.json()
    assert result["status"] == "ok"
    assert result["event_totals"] == [0.0, 1.0, 1.0, 0.0]
    assert [review["total"] for review in result["event_reviews"]] == result["event_totals"]
    assert result["outcome_review"]["criteria"]["survival_state"]["score"] == 1.0
    assert result["metadata"]["judge"] == "programmatic" and result["metadata"]["run_id"] == "run-1"


def test_the_three_keys_of_the_wires_trace_are_enough(make_service):
    whole = trace_payload(played(), "structured")
    for key in ("session_id", "session_time_steps", "created_at"):
        del whole[key]
    bare = json.loads(json.dumps(whole))
    for event in bare["event_history"]:
        del event["metadata"]["step_id"], event["metadata"]["turn"]
    with make_service() as client:
        for trace in (whole, bare):
            assert client.post(PATHS[0], json=body(trace=trace)).json()["event_totals"] == [0.0, 1.0, 1.0, 0.0]


def test_turns_or_outcome_can_be_left_out(make_service):
    with make_service() as client:
        only = client.post(PATHS[0], json=body(event=False)).json()
        assert only["event_reviews"] == [] and only["outcome_review"]["total"] == 1.0
        only = client.post(PATHS[0], json=body(outcome=False)).json()
        assert only["outcome_review"] is None and len(only["event_reviews"]) == 4


def test_a_chat_model_of_ours_judges_in_this_process_with_our_key(make_service, monkeypatch):
    seen = []

    async def chat(self, request):
        if not self._guard.lets_in(request):
            return httpx_to_starlette(said("no", 401))
        seen.append(await request.json())
        return httpx_to_starlette(said('{"scores": {"skill": {"reason": "quick", "score": 0.75}}}'))

    monkeypatch.setattr("train_app.routes.inference.Inference.chat", chat)
    with make_service(api_key="secret") as client:
        answer = client.post(
            PATHS[0], json=body(rubric=SKILL, model="latest:sft"), headers={"Authorization": "Bearer secret"}
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["outcome_review"]["criteria"]["skill"]["reason"] == "quick"
    assert seen[0]["model"] == "latest:sft" and "Plays well." in seen[0]["messages"][1]["content"]


def httpx_to_starlette(response):
    from starlette.responses import Response

    return Response(response.content, response.status_code, media_type="application/json")


def test_a_chat_model_elsewhere_judges_once_and_is_on_record(make_service, tmp_path):
    seen = []

    def model(request):
        seen.append(request)
        return said('{"scores": {"skill": 0.5}}')

    with make_service(model_transport=httpx.MockTransport(model)) as client:
        for _ in range(2):
            ask = body(rubric=SKILL, model="judge-1", inference_url="http://judge.test/v1", provider="gemini")
            result = client.post(PATHS[0], json=ask).json()
            assert result["outcome_review"]["total"] == 0.5
        assert client.post(PATHS[0], json=body(rubric=SKILL, model="m", provider="groq")).status_code == 200
    assert [str(r.url) for r in seen] == [
        "http://judge.test/v1/chat/completions",
        "https://api.groq.com/openai/v1/chat/completions",
    ]
    (count,) = sqlite3.connect(tmp_path / "data" / "judge.sqlite").execute("SELECT count(*) FROM calls").fetchone()
    assert count == 2


@pytest.mark.parametrize("rubric_id", [None, "crafter/bundle@v1", "crafter"])
def test_without_a_rubric_the_task_apps_own_is_taken(make_service, rubric_id):
    asked = []

    def task_app(request):
        asked.append((str(request.url), request.headers.get("x-api-key")))
        return httpx.Response(200, json={"rubrics": {"outcome": {"criteria": RUBRIC["outcome"]}, "events": None}})

    with make_service(task_app_transport=httpx.MockTransport(task_app), task_app_key="k") as client:
        ask = body(
            rubric=None, app={"base_url": "http://task.test/"}, **({"rubric_id": rubric_id} if rubric_id else {})
        )
        assert client.post(PATHS[0], json=ask).json()["outcome_review"]["total"] == 1.0
    assert asked == [("http://task.test/info", "k")]


def without(key):
    broken = trace_payload(played(), "structured")
    del broken[key]
    return broken


@pytest.mark.parametrize(
    ("ask", "status", "says"),
    [
        (body(trace=without("event_history")), 422, "event_history"),
        (body(trace={"event_history": "x"}), 422, "event_history"),
        (body(trace={"event_history": []}), 400, "no turns"),
        (body(trace={"event_history": [{"metadata": "x"}]}), 400, "cannot be read"),
        (
            body(trace={"event_history": [{"event_type": "cais", "call_records": [3]}]}),
            400,
            "call_records[0]: it should be an object",
        ),
        (body(rubric={"outcome": [{"id": "style"}]}), 422, "rubric.outcome.criteria.0.id"),
        (body(rubric={"outcome": [{"id": "a", "weight": -1}]}), 422, "rubric.outcome.criteria.0.weight"),
        (body(rubric={"outcome": {"criteria": [{"id": "a"}], "aggregation": "custom"}}), 422, "plug-in"),
        (body(rubric=None), 422, "task_app.base_url"),
        (body(event=False, outcome=False), 422, "both off"),
        (body(model=""), 422, "model"),
        (body(model="x", provider="gemini"), 422, "inference_url"),
        (body(model="no-such-model", rubric=SKILL), 404, "no-such-model"),
        (body(rubric=None, rubric_id="chess/v1", app={"base_url": "http://task.test"}), 404, "chess/v1"),
        (body(rubric=None, app={"base_url": "http://none.test"}), 404, "no rubrics"),
        (body(rubric=None, app={"base_url": "http://down.test"}), 502, "down.test"),
        (body(rubric=None, app={"base_url": "http://broken.test"}), 502, "cannot be read"),
        ({"options": {"model": "programmatic"}}, 422, "trace"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_its_reason(backend, ask, status, says):
    answer = backend.post(PATHS[0], json=ask)
    assert answer.status_code == status, answer.text
    assert says in answer.text


@pytest.mark.parametrize(("status", "ours"), [(400, 502), (404, 404)])
def test_what_the_chat_model_refuses_is_passed_on(make_service, status, ours):
    transport = httpx.MockTransport(lambda request: httpx.Response(status, json={"error": {"message": "not here"}}))
    with make_service(model_transport=transport) as client:
        answer = client.post(PATHS[0], json=body(rubric=SKILL, model="m", inference_url="http://judge.test"))
    assert answer.status_code == ours and "not here" in answer.text


def test_a_busy_chat_model_is_429(make_service):
    transport = httpx.MockTransport(lambda request: httpx.Response(429, headers={"retry-after": "30"}))
    with make_service(model_transport=transport) as client:
        ask = body(rubric=SKILL, model="m", inference_url="http://judge.test", timeout_s=0.2)
        assert client.post(PATHS[0], json=ask).status_code == 429


def test_an_overriding_rubric_wins_and_what_has_no_effect_is_said(make_service):
    ask = body(rubric={"outcome": [{"id": "x"}]}, rubric_overrides=RUBRIC, tracks=["process"], weights={})
    with make_service() as client:
        result = client.post(PATHS[0], json=ask).json()
    assert len(result["event_totals"]) == 4
    assert list(result["metadata"]["not_applied"]) == ["tracks"]


def test_the_key_is_asked_for(make_service):
    with make_service(api_key="secret") as client:
        assert client.post(PATHS[0], json=body()).status_code == 401


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"{", 400),
        (b'{"options": {"model": "programmatic", "timeout_s": NaN}}', 400),
        (b'{"policy_name": "\\ud800"}', 400),
        (b'{"policy_name": 1e999}', 400),
        (b'{"trace": {"event_history": []}, "options": {"model": "programmatic", "timeout_s": -1}}', 422),
        (b"[1]", 422),
        (b"", 400),
    ],
)
def test_a_body_that_cannot_be_repeated_in_json_is_refused_too(backend, raw, status):
    answer = backend.post(PATHS[0], content=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code == status and answer.json()["detail"]
