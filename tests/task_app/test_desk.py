"""Rollouts that others follow, stop, repeat, or whose model fails: told clearly, and no junk session is left."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import orjson
import pytest

import task_app.desk
import task_app.rollout


def error_of(answer: httpx.Response) -> dict[str, str]:
    return answer.json()["detail"]["error"]


# --------------------------------------------------------------------------- models that fail


def refusing(status: int, message: str = "no", **headers: str):
    return lambda body, n: httpx.Response(status, json={"error": {"message": message}}, headers=headers)


def raising(error: Exception):
    return lambda body, n: error


def saying(content: bytes):
    return lambda body, n: httpx.Response(200, content=content)


TOO_LONG = "This model's maximum context length is 512 tokens. Please reduce the length of the messages."


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (refusing(400), "refused"),
        (refusing(401), "refused"),
        (refusing(404), "refused"),
        (refusing(302, location="http://elsewhere.test"), "refused"),
        (refusing(400, TOO_LONG), "context_too_long"),
        (refusing(429, **{"Retry-After": "0"}), "rate_limited"),
        (refusing(500), "unreachable"),
        (raising(httpx.ConnectError("refused")), "unreachable"),
        (raising(httpx.RemoteProtocolError("gone")), "unreachable"),
        (saying(b""), "bad_answer"),
        (saying(b"\xff\xfe\x00"), "bad_answer"),
        (saying(b'{"choices": [{"message": {"content": "\xff"}}]}'), "bad_answer"),
        (saying(b'{"choices": []}'), "bad_answer"),
        (saying(b"[1]"), "bad_answer"),
        (saying(b"x" * 1_000_001), "bad_answer"),
    ],
)
def test_a_failing_model_is_a_502_of_its_kind_and_an_attempt(serve, make_chat, make_body, trace_rows, script, kind):
    answer = serve(make_chat(script)).post("/rollout", json=make_body())
    assert answer.status_code == 502, answer.text
    assert error_of(answer)["code"] == f"model_{kind}" and "model.test" in error_of(answer)["message"]
    assert trace_rows("SELECT run_id, attempt FROM rollout_attempts") == [("run", 1)]
    for table in ("session_traces", "session_timesteps", "events", "messages", "outcome_rewards", "event_rewards"):
        assert trace_rows(f"SELECT count(*) FROM {table}") == [(0,)], table


def test_a_model_that_hangs_is_a_timeout(serve, make_chat, make_body, trace_rows, monkeypatch):
    monkeypatch.setattr(task_app.rollout, "CALL_SECONDS", 0.05)
    answer = serve(make_chat("do", latency_s=60.0)).post("/rollout", json=make_body())
    assert answer.status_code == 502 and error_of(answer)["code"] == "model_timeout"
    assert trace_rows("SELECT count(*) FROM session_traces") == [(0,)]


def test_a_busy_model_is_waited_for(serve, make_chat, make_body):
    busy = httpx.Response(429, headers={"Retry-After": "0.01"})
    chat = make_chat(lambda body, n: busy if n == 1 else "do")
    assert serve(chat).post("/rollout", json=make_body()).status_code == 200


def test_a_model_that_talks_for_half_a_megabyte_is_played(serve, make_chat, make_body):
    answer = serve(make_chat("do " + "x" * 500_000)).post("/rollout", json=make_body(env={"max_env_steps": 1}))
    assert answer.status_code == 200 and answer.json()["metrics"]["num_steps"] == 1


# --------------------------------------------------------------------------- status and abort


def test_a_finished_rollout_is_known_also_to_the_next_process(serve, make_chat, make_body):
    app = serve(make_chat("do"))
    app.post("/rollout", json=make_body("a/b"))
    told = app.get("/run/status/a/b").json()
    assert told["status"] == "completed" and told["turns"] == 4 and told["env_steps"] == 4
    assert told["started_at"] < told["finished_at"]
    app.app.state.desk._ended.clear()
    assert app.get("/run/status/a/b").json() == {"run_id": "a/b", "status": "completed"}


def test_a_failed_rollout_says_why(serve, make_chat, make_body):
    app = serve(make_chat(refusing(404, "no such model")))
    app.post("/rollout", json=make_body())
    told = app.get("/run/status/run").json()
    assert told["status"] == "failed" and "no such model" in told["error"]


def test_a_rollout_that_nobody_knows_is_404(serve, make_chat):
    app = serve(make_chat("do"))
    for answer in (app.get("/run/status/none"), app.post("/run/abort", json={"run_id": "none"})):
        assert answer.status_code == 404 and error_of(answer)["code"] == "unknown_run"


async def test_a_rollout_can_be_followed_and_stopped(make_chat, make_body, make_desk):
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def wait(body, n):
        if n == 2:
            reached.set()
            await go_on.wait()
        return "noop"

    desk, plan = make_desk(wait), make_body("run", env={"max_env_steps": 50})
    answer = asyncio.create_task(desk.rollout(plan))
    await reached.wait()
    assert (await desk.status("run"))["status"] == "running" and (await desk.status("run"))["turns"] == 2
    assert (await desk.abort("run"))["status"] == "aborting"
    go_on.set()
    told = await answer
    assert told["aborted"] is True and told["metrics"]["details"]["stop_reason"] == "aborted"
    assert told["metrics"]["num_steps"] <= 3
    assert (await desk.status("run"))["status"] == "aborted"
    assert (await desk.abort("run"))["status"] == "aborted", "again is no error"
    await desk.aclose()


async def test_an_abort_does_not_wait_for_a_model_that_hangs(make_body, make_desk):
    called = asyncio.Event()

    async def hang(body, n):
        called.set()
        await asyncio.sleep(60)
        return "noop"

    desk = make_desk(hang)
    answer = asyncio.create_task(desk.rollout(make_body("run")))
    await called.wait()
    await desk.abort("run")
    async with asyncio.timeout(5):
        assert (await answer)["aborted"] is True
    await desk.aclose()


async def test_requests_of_one_moment_do_not_hold_up_the_loop(make_body, make_desk, monkeypatch):
    """A hundred are planned over many rounds of the loop, so that others get their turn."""
    ticks, planned_at = 0, []

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    plan = task_app.desk.plan_rollout

    def count(*arguments):
        planned_at.append(ticks)
        return plan(*arguments)

    async def noop(body, n):
        return "noop"

    monkeypatch.setattr(task_app.desk, "plan_rollout", count)
    desk, ticking = make_desk(noop), asyncio.create_task(tick())
    bodies = [make_body(f"r{i}", env={"max_env_steps": 1}, record={"store": False}) for i in range(100)]
    answers = await asyncio.gather(*(desk.rollout(body) for body in bodies))
    ticking.cancel()
    assert len(answers) == 100 and max(Counter(planned_at).values()) <= task_app.desk.AT_ONCE
    await desk.aclose()


async def test_closing_ends_the_plays_under_way(make_body, make_desk):
    called = asyncio.Event()

    async def hang(body, n):
        called.set()
        await asyncio.sleep(60)

    desk = make_desk(hang)
    answer = asyncio.create_task(desk.rollout(make_body("run")))
    await called.wait()
    await desk.aclose()
    with pytest.raises(asyncio.CancelledError):
        await answer


@pytest.fixture
def make_desk(tmp_path):
    """A desk whose model is an async function (body, number of the call) -> text."""
    import orjson

    from crafter_pipeline.clients.chat import ChatClient
    from crafter_pipeline.contracts import RolloutRequest
    from crafter_pipeline.settings import Settings
    from crafter_pipeline.traces.store import TraceStore
    from task_app.desk import RolloutDesk
    from task_app.environments import environment_of
    from task_app.live import LiveEnvironments

    class Desk(RolloutDesk):
        async def rollout(self, body):
            return orjson.loads(await self.answer(RolloutRequest.model_validate(body)))

    def make(script):
        calls = iter(range(1000))

        async def handle(request: httpx.Request) -> httpx.Response:
            content = await script(orjson.loads(request.content), next(calls))
            return httpx.Response(200, json={"choices": [{"message": {"role": "assistant", "content": content}}]})

        chat = ChatClient(Settings(_env_file=None), transport=httpx.MockTransport(handle))
        store = TraceStore(tmp_path / "desk" / "t.db")
        return Desk(chat, LiveEnvironments(environment_of("crafter")), store)

    return make


# --------------------------------------------------------------------------- what is stored


def test_rollouts_that_end_together_are_committed_together(serve, make_chat, make_body, trace_rows):
    app = serve(make_chat("do"))
    desk, commits = app.app.state.desk, []
    store = desk._store
    store._connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other, ThreadPoolExecutor(16) as pool:
        other.execute("BEGIN IMMEDIATE")  # until all have played
        answers = [pool.submit(app.post, "/rollout", json=make_body(f"run-{i}")) for i in range(16)]
        deadline = time.monotonic() + 20
        while sum(run.progress.turns == 4 for run in list(desk._runs.values())) < 16:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not any(answer.done() for answer in answers), "no answer before its rollout is committed"
        other.execute("ROLLBACK")
        assert all(answer.result().status_code == 200 for answer in answers)
    assert len(commits) <= 4, "the one that the writer had begun with, and the rest"
    assert trace_rows("SELECT count(*) FROM session_traces") == [(16,)]


def test_a_side_file_is_written_for_what_is_stored(serve, make_chat, make_body, tmp_path):
    app = serve(make_chat("do"), side_files=tmp_path / "sft")
    app.post("/rollout", json=make_body("a/b"))
    app.post("/rollout", json=make_body("rl", record={"store": False}))
    app.__exit__(None, None, None)
    (file,) = (tmp_path / "sft").iterdir()
    assert file.name.startswith("a_b-") and len(file.read_bytes().splitlines()) == 4


def test_a_side_file_that_cannot_be_written_fails_nothing(serve, make_chat, make_body, tmp_path, caplog):
    (tmp_path / "file").touch()
    app = serve(make_chat("do"), side_files=tmp_path / "file")
    assert app.post("/rollout", json=make_body()).status_code == 200
    app.__exit__(None, None, None)
    assert "No side file for rollout run" in caplog.text


def test_logprobs_that_are_asked_for_are_stored(serve, make_chat, make_body, trace_rows):
    told = {"logprobs": {"content": [{"token": "do", "logprob": -0.25}]}, "token_ids": [7]}
    body = {"choices": [{"message": {"content": "do"}} | told], "prompt_token_ids": [1, 2]}
    chat = make_chat(lambda *_: httpx.Response(200, json=body))
    answer = serve(chat).post("/rollout", json=make_body(record={"logprobs": True})).json()
    assert all(sent["logprobs"] and sent["return_token_ids"] for sent in chat.bodies)
    assert "not_applied" not in answer["metrics"]["details"]
    captured = {"prompt_token_ids": [1, 2], "token_ids": [7], "logprobs": [-0.25]}
    calls = trace_rows("SELECT call_records -> '$[0].token_traces[0]' FROM events WHERE event_type = 'cais'")
    assert [orjson.loads(call) for (call,) in calls] == [captured] * 4


def test_logprobs_that_the_server_does_not_tell_are_said(serve, make_chat, make_body, trace_rows):
    chat = make_chat("do")
    answer = serve(chat).post("/rollout", json=make_body(record={"logprobs": True})).json()
    assert answer["metrics"]["details"]["not_applied"] == {
        "record.logprobs": "the model's server did not tell them in 4 of 4 answers"
    }
    assert trace_rows("SELECT metadata ->> '$.further.not_applied' FROM session_traces")[0][0].count("logprobs") == 1


def test_nobody_asks_for_logprobs_unasked(serve, make_chat, make_body):
    chat = make_chat("do")
    serve(chat).post("/rollout", json=make_body())
    assert not chat.bodies[0].keys() & {"logprobs", "return_token_ids"}
