"""`crafter-pipeline judge`: scores of stored rollouts, and what becomes of them."""

from __future__ import annotations

import json
import sqlite3

import httpx
import pytest
from starlette.testclient import TestClient

from crafter_pipeline import connections
from crafter_pipeline.cli import main
from crafter_pipeline.clients.backend import BackendClient
from crafter_pipeline.clients.http import service_client
from crafter_pipeline.config import FilterConfig
from crafter_pipeline.dataset.selection import select
from crafter_pipeline.game import Game, render_text
from crafter_pipeline.traces.reader import read_rollouts
from crafter_pipeline.traces.store import TraceStore
from tests.standins.chat_model import ScriptedChat
from train_app.app import make_app

JUDGES = """\
def judge(payload):
    return payload["metrics"]["mean_return"] / 10

def picky(payload):
    if payload["seed"] == 2:
        raise ValueError("not this one")
    return 1

def broken(payload):
    raise ValueError("never")
"""
RUBRIC = """\
[rubric.outcome]
goal_text = "Live."
[[rubric.outcome.criteria]]
id = "survival_state"
"""


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """A working directory with judges and a rubric, and no address in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BACKEND_BASE_URL", raising=False)
    (tmp_path / "judges.py").write_text(JUDGES)
    (tmp_path / "rubric.toml").write_text(RUBRIC)


@pytest.fixture
def database(make_rollout, make_turn, make_db):
    """Four rollouts that were really played, r-0 to r-3, with returns of 0 to 3."""

    def rollout(seed):
        game, turns = Game(seed, max_steps=10), []
        for index in range(2):
            before = render_text(game.observe(), "sparse")
            game.step("move_left")
            after = render_text(game.observe(), "sparse")
            turns.append(make_turn(index, actions=("move_left",), observation=before, next_observation=after))
        return make_rollout(f"r-{seed}", seed=seed, turns=tuple(turns), achievements=(), total_reward=float(seed))

    return make_db([rollout(seed) for seed in range(4)])


def judged(capsys, database, *arguments, code=0):
    assert main(["judge", "--in", str(database), *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def kept(database):
    return {r.run_id: r.metadata.get("judge_scores") for r in read_rollouts(database)}


def test_scores_are_kept_beside_earlier_ones_where_the_filter_sees_them(database, tmp_path, capsys):
    assert main(["judge", "--in", str(database), "--judge", "good=judges.py:judge", "--judge", "programmatic"]) == 0
    assert "good: mean 0.150 of 4 rollouts, r with the return +1.00" in capsys.readouterr().out
    assert {run: scores["good"] for run, scores in kept(database).items()} == {
        "r-0": 0.0,
        "r-1": 0.1,
        "r-2": 0.2,
        "r-3": 0.3,
    }
    assert judged(capsys, database, "r-3", "--judge", "other=judges:picky")["rollouts"][0]["judge_scores"] == {
        "other": 1
    }
    assert set(kept(database)["r-3"]) == {"good", "programmatic", "other"}, "earlier scores stay"
    with select([database], FilterConfig(min_judge_scores={"good": 0.2}), tmp_path) as selection:
        assert {rollout.session_id for rollout in selection.rollouts} == {"r-2", "r-3"}


def test_no_store_leaves_the_database_alone_and_every_review_can_be_kept(database, tmp_path, capsys):
    before = database.read_bytes()
    found = judged(capsys, database, "--limit", "2", "--no-store", "--rubric", "rubric.toml", "--out", "reviews.jsonl")
    assert database.read_bytes() == before and [r["run_id"] for r in found["rollouts"]] == ["r-0", "r-1"]
    lines = [json.loads(line) for line in (tmp_path / "reviews.jsonl").read_text().splitlines()]
    for line, row in zip(lines, found["rollouts"], strict=True):
        review = line["reviews"]["programmatic"]
        assert list(review["outcome_review"]["criteria"]) == ["survival_state"] and review["event_reviews"] == []
        assert review["outcome_review"]["total"] == row["judge_scores"]["programmatic"] > 0


def test_scores_are_written_while_a_task_app_writes(database, make_rollout, capsys):
    with TraceStore(database) as task_app:
        assert task_app.add(make_rollout("late"))
        judged(capsys, database, "r-1", "--judge", "good=judges.py:judge")
        assert task_app.add(make_rollout("later"))
    assert kept(database) == {"r-0": None, "r-1": {"good": 0.1}, "r-2": None, "r-3": None, "late": None, "later": None}
    with sqlite3.connect(database) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_judge_that_fails_on_some_is_told_by_rollout_and_the_rest_is_kept(database, capsys):
    assert main(["judge", "--in", str(database), "--judge", "judges.py:picky"]) == 3
    said = capsys.readouterr().err
    assert "Not judged: 1 score of 4." in said and "r-2, judges.py:picky" in said and "ValueError: not this one" in said
    assert [run for run, scores in kept(database).items() if scores] == ["r-0", "r-1", "r-3"]
    assert main(["judge", "--in", str(database), "--judge", "judges.py:broken"]) == 1
    assert "No rollout could be judged" in capsys.readouterr().err


def test_a_chat_model_judges_once(database, tmp_path, monkeypatch, capsys):
    answer = json.dumps({"scores": {"survival_state": {"reason": "alive", "score": 0.5}}, "summary": "fair"})
    chat = ScriptedChat(answer)
    monkeypatch.setattr("crafter_pipeline.clients.chat._default_transport", chat.transport)
    arguments = ["--model", "wise", "--inference-url", "http://models:1/v1", "--rubric", "rubric.toml"]
    for _ in range(2):
        found = judged(capsys, database, *arguments, "--record", "calls.db")
        assert found["judges"] == {"wise": {"mean": 0.5, "scored": 4, "failed": 0, "pearson_r": None}}
    assert len(chat.requests) == 4, "calls that come again are answered from the record"
    assert {body["model"] for body in chat.bodies} == {"wise"}
    assert kept(database)["r-0"] == {"wise": 0.5}
    monkeypatch.setenv("BACKEND_BASE_URL", "http://backend:8000")
    judged(capsys, database, "r-0", "--model", "wise", "--rubric", "rubric.toml")
    assert str(chat.requests[-1].url) == "http://backend:8000/api/inference/v1/chat/completions"


@pytest.fixture
def backend(tmp_path, monkeypatch):
    """Our backend, reached by the command."""
    with TestClient(make_app(tmp_path / "data", api_key=None), base_url="http://backend:8000") as http:
        monkeypatch.setattr(connections, "backend", lambda url: BackendClient(http))
        yield


def test_our_backend_scores_as_the_program_here_does(database, backend, capsys):
    found = judged(capsys, database, "--judge", "there=backend", "--judge", "here=programmatic")
    for row in found["rollouts"]:
        assert row["judge_scores"]["there"] == pytest.approx(row["judge_scores"]["here"])
        assert row["judge_scores"]["here"] > 0


def test_the_hosted_judge_is_asked_on_its_wire(database, monkeypatch, capsys):
    bodies = []

    def score(request):
        bodies.append(json.loads(request.content))
        if len(bodies) == 2:
            return httpx.Response(200, json={"status": "failed", "error": "the judge is tired"})
        card = {"criteria": {"survival_state": {"score": 0.25, "reason": "hurt"}}, "total": 0.25, "summary": ""}
        return httpx.Response(200, json={"status": "ok", "outcome_review": card, "event_reviews": []})

    transport = httpx.MockTransport(score)
    monkeypatch.setattr(connections, "backend", lambda url: BackendClient(service_client(url, transport=transport)))
    options = ["--judge", "backend", "--model", "openai/gpt-oss-120b", "--provider", "groq", "--rubric", "rubric.toml"]
    found = judged(capsys, database, *options, "--concurrency", "1", code=3)
    scores = [row["judge_scores"] for row in found["rollouts"]]
    assert scores == [{"openai/gpt-oss-120b": 0.25}, {}, *[{"openai/gpt-oss-120b": 0.25}] * 2]
    assert "the judge is tired" in found["rollouts"][1]["problems"]["openai/gpt-oss-120b"]
    body = bodies[0]
    assert set(body) == {"policy_name", "task_app", "trace", "rubric", "options"}
    assert set(body["trace"]) == {"event_history", "markov_blanket_message_history", "metadata"}
    assert [c["id"] for c in body["rubric"]["outcome"]] == ["survival_state"]
    assert body["options"] == {"model": "openai/gpt-oss-120b", "provider": "groq", "event": False, "outcome": True}


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_backend_that_judges_for_nobody_is_one_line(database, monkeypatch, capsys, status):
    transport = httpx.MockTransport(lambda request: httpx.Response(status, html="<html>no</html>"))
    client = BackendClient(service_client("http://b", transport=transport, sleep=lambda seconds: None))
    monkeypatch.setattr(connections, "backend", lambda url: client)
    assert main(["judge", "--in", str(database), "--judge", "backend"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "<" not in said and kept(database)["r-0"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--judge", "nonsense"], "module:function or file.py:function"),
        (["--judge", "model"], "--model"),
        (["--judge", "judges.py:missing"], "no function 'missing'"),
        (["--judge", "a=judges.py:judge", "--judge", "a=judges.py:picky"], "two scores are called 'a'"),
        (["--inference-url", "http://x:1"], "--inference-url is for --judge model"),
        (["--rubric", "none.toml"], "none.toml"),
        (["--rubric", "judges.py"], "judges.py"),
        (["--limit", "0"], "limit"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_judged(database, capsys, arguments, words):
    assert main(["judge", "--in", str(database), *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and kept(database)["r-0"] is None


def test_a_criterion_that_no_program_scores_is_named_with_the_nearest(database, tmp_path, capsys):
    (tmp_path / "rubric.toml").write_text(RUBRIC.replace("survival_state", "survival_stat"))
    assert main(["judge", "--in", str(database), "--rubric", "rubric.toml"]) == 2
    assert "did you mean 'survival_state'" in capsys.readouterr().err


def test_a_rollout_that_is_not_there_is_told(database, capsys):
    assert main(["judge", "r-9", "--in", str(database)]) == 1
    assert "holds no rollout 'r-9'" in capsys.readouterr().err
