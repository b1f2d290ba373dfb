"""Teacher rollouts on a bad day of a hosted provider: what it answers is waited for, recorded, and never made up."""

from __future__ import annotations

import asyncio
import json
import time

import httpx
import pytest

from crafter_pipeline.clients.chat import BUSY_TRIES, TRIES, ChatClient
from crafter_pipeline.contracts import RolloutRequest, Turn
from crafter_pipeline.settings import Settings
from crafter_pipeline.traces.reader import read_rollouts
from task_app.app import make_app
from tests.standins.groq import FAILED_GENERATION, KEY, GroqLike

GROQ = "https://api.groq.com/openai/v1"


@pytest.fixture
def keys(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    monkeypatch.setenv("ENVIRONMENT_API_KEY", "of-the-task-app")
    monkeypatch.setenv("SYNTH_API_KEY", "of-the-backend")


def play(groq: GroqLike, *, seeds=(1,), turns=4, tmp_path=None, url=GROQ, **policy) -> list[httpx.Response]:
    """Rollouts of the teacher, all at once, by the real task app."""

    async def rollouts():
        settings = Settings(_env_file=None)
        chat = ChatClient(settings, transport=groq.transport(), first_wait_seconds=0.001)
        app = make_app("grpo-crafter", chat=chat, trace_dir=tmp_path)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://task") as http,
        ):
            return await asyncio.gather(*(http.post("/rollout", json=request(seed), timeout=60) for seed in seeds))

    def request(seed):
        config = {
            "model": "qwen/qwen3-32b",
            "inference_url": url,
            "observation": "sparse",
            "use_tools": False,
            **policy,
        }
        body = {"run_id": f"groq-{seed}", "env": {"seed": seed, "config": {"max_env_steps": turns}}}
        return RolloutRequest.model_validate(body | {"policy": {"config": config}}).model_dump(mode="json")

    return asyncio.run(rollouts())


def steps_of(answer: httpx.Response) -> list[dict]:
    assert answer.status_code == 200, answer.text
    return answer.json()["trajectories"][0]["steps"]


def test_the_teacher_plays_through_limits_errors_pages_and_slow_answers(keys):
    groq = GroqLike(["rate_limited", "ok", "slow", "unavailable", "html", "ok"], retry_after_s=0.1, slow_s=0.1)
    (answer,) = play(groq)
    assert len(steps_of(answer)) == 4
    assert groq.statuses == [429, 200, 200, 503, 502, 200, 200], "every failure is one more try, and no more"


def turns_of(folder) -> tuple[Turn, ...]:
    """What was recorded of the one rollout."""
    (database,) = folder.glob("*.db")
    (rollout,) = read_rollouts(database)
    return rollout.turns


def test_a_tool_call_that_failed_is_a_recorded_parse_failure_and_no_action_is_made_up(keys, tmp_path):
    groq = GroqLike(["ok", "tool_use_failed"])
    (answer,) = play(groq, use_tools=True, turns=3, tmp_path=tmp_path)
    assert answer.status_code == 200 and groq.statuses == [200, 400, 200], "it is not asked for again"
    before, failed, after = turns_of(tmp_path)
    assert failed.reply.content == FAILED_GENERATION and failed.reply.finish_reason == "tool_use_failed"
    assert failed.parse_failure and failed.actions == ("noop",) and failed.reward == 0
    assert before.parse_failure is None and after.parse_failure is None, "and the episode goes on"


def test_tries_are_bounded(keys):
    groq = GroqLike(["unavailable"] * 50)
    (answer,) = play(groq)
    assert answer.status_code == 502 and len(groq.statuses) == TRIES
    busy = GroqLike(["rate_limited"] * 50, retry_after_s=0)
    (answer,) = play(busy)
    assert answer.json()["detail"]["error"]["code"] == "model_rate_limited" and len(busy.statuses) == BUSY_TRIES


def test_half_an_answer_is_none(keys):
    (answer,) = play(GroqLike(["cut"]), turns=1)
    assert answer.json()["detail"]["error"]["code"] == "model_bad_answer"


def test_a_rate_limit_slows_every_rollout_and_fails_none(keys):
    groq = GroqLike(per_window=20, window_s=0.15, retry_after_s=0.15)
    started = time.monotonic()
    answers = play(groq, seeds=range(16), turns=5)
    assert all(len(steps_of(answer)) == 5 for answer in answers)
    assert groq.statuses.count(200) == 80
    assert time.monotonic() - started >= 0.45, "80 calls at 20 a window"
    limited = groq.statuses.count(429)
    assert 0 < limited < 160, "who is limited calls less often, not at once again"


def test_the_key_goes_to_its_host_alone(keys):
    groq = GroqLike()
    assert play(groq, turns=1)[0].status_code == 200
    sent = json.dumps(groq.headers)
    assert groq.headers[0]["authorization"] == f"Bearer {KEY}"
    assert "of-the-task-app" not in sent and "of-the-backend" not in sent
    elsewhere = GroqLike()
    (answer,) = play(elsewhere, turns=1, url="https://api.groq.com.evil.test/openai/v1")
    assert answer.status_code == 502 and "authorization" not in elsewhere.headers[0]


def test_without_its_key_the_variable_is_named(keys, monkeypatch):
    monkeypatch.delenv("GROQ_API_KEY")
    (answer,) = play(GroqLike(), turns=1)
    error = answer.json()["detail"]["error"]["message"]
    assert "HTTP 401: Invalid API Key" in error and "none was sent: set GROQ_API_KEY" in error


def test_what_it_does_not_know_is_never_sent(keys):
    groq = GroqLike()
    (answer,) = play(groq, turns=1, thinking_mode="think", thinking_budget=64)
    assert answer.status_code == 200 and "chat_template_kwargs" not in groq.bodies[0]


@pytest.mark.parametrize("model", ["qwen/qwen3-32b", "openai/gpt-oss-120b"])
def test_its_thoughts_are_kept_in_either_form(keys, tmp_path, model):
    assert play(GroqLike(), turns=1, model=model, tmp_path=tmp_path)[0].status_code == 200
    (turn,) = turns_of(tmp_path)
    assert turn.reply.thinking and "<think>" not in turn.reply.content
