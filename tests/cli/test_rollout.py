"""`crafter-pipeline rollout`: what it asks of the task app, what it writes, how it ends."""

from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient

import crafter_pipeline.cli.rollout as command
from crafter_pipeline import connections
from crafter_pipeline.cli import main
from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.clients.task_app import TaskAppClient
from crafter_pipeline.settings import Settings
from crafter_pipeline.traces.snapshots import read_snapshot
from task_app.app import make_app
from tests.standins.chat_model import ScriptedChat, tool_call

TEACHER = ["--model", "qwen/qwen3-32b", "--inference-url", "https://api.groq.com/openai"]
SHORT = ["--max-llm-calls", "3"]


@pytest.fixture
def chat(monkeypatch, tmp_path):
    """The real task app over a scripted model; results land in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("TASK_APP_URL", "BACKEND_BASE_URL", "GROQ_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    model = ScriptedChat(tool_call({"actions": ["do"]}))
    client = ChatClient(Settings(_env_file=None), transport=model.transport(), first_wait_seconds=0.001)
    with TestClient(make_app(trace_dir=tmp_path / "traces", chat=client)) as http:
        model.http = http
        monkeypatch.setattr(command, "client_at", lambda *given: model.asked.append(given) or TaskAppClient(http))
        model.asked = []
        yield model


def outcome(capsys, *words):
    code = main(["rollout", *TEACHER, *SHORT, *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_documented_command_writes_the_trace_and_sends_each_key_to_its_host(chat, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_GROQ", "gsk-secret")
    keys = ["--api-key", "env-key", "--inference-api-key", "env:MY_GROQ"]
    words = ["--base-url", "http://localhost:8001", *keys, *TEACHER, *SHORT, "--run-id", "local-trace"]
    assert main(["rollout", *words]) == 0
    said = capsys.readouterr()
    assert "local-trace (seed 42): return 0.00" in said.out and "3 turns" in said.out
    assert "--api-key env:NAME does not" in said.err and "--inference-api-key" not in said.err
    assert "gsk-secret" not in said.out + said.err
    assert chat.asked == [("http://localhost:8001", "env-key", 3600.0)]
    assert str(chat.requests[0].url) == "https://api.groq.com/openai/v1/chat/completions"
    assert {r.headers["authorization"] for r in chat.requests} == {"Bearer gsk-secret"} and len(chat.requests) == 3
    snapshot = tmp_path / "local-trace_trace.json"
    rollout = read_snapshot(snapshot)
    assert (rollout.seed, len(rollout.turns), rollout.model) == (42, 3, "qwen/qwen3-32b")
    assert "gsk-secret" not in snapshot.read_text()


def test_several_episodes_have_worlds_and_files_of_their_own(chat, capsys, tmp_path):
    code, told = outcome(capsys, "--episodes", "3", "--parallel", "2", "--seed-stride", "10")
    assert code == 0 and told["failed"] == 0 and told["mean_return"] == told["mean_achievements"]
    played = [(e["run_id"], e["seed"], e["turns"], e["trace_file"]) for e in told["episodes"]]
    assert played == [(f"local-trace-00{i}", 42 + 10 * i, 3, f"local-trace-00{i}_trace.json") for i in range(3)]
    assert {read_snapshot(tmp_path / file).seed for *_, file in played} == {42, 52, 62}


def test_a_stored_run_id_is_told_and_fresh_plays_anew(chat, capsys):
    assert outcome(capsys)[1]["episodes"][0]["stored_already"] is False
    calls = len(chat.requests)
    assert main(["rollout", *TEACHER, *SHORT]) == 0
    said = capsys.readouterr()
    assert "stored already: nothing was played" in said.out and "--fresh" in said.err and len(chat.requests) == calls
    again = outcome(capsys, "--fresh")[1]["episodes"][0]
    assert again["run_id"].startswith("local-trace-2") and len(chat.requests) == 2 * calls


def test_other_settings_under_a_stored_run_id_fail_with_the_remedy(chat, capsys):
    outcome(capsys)
    assert main(["rollout", *TEACHER, "--max-turns", "5"]) == 1
    err = capsys.readouterr().err
    assert "used for a request with other settings" in err and "--fresh, or another --run-id" in err


def test_some_failures_are_partial_and_all_are_a_failure(chat, capsys):
    assert main(["rollout", *TEACHER, *SHORT, "--run-id", "r-001"]) == 0  # holds the name of the second one
    capsys.readouterr()
    code, told = outcome(capsys, "--episodes", "2", "--run-id", "r")
    assert code == 3 and told["failed"] == 1
    assert [bool(e["error"]) for e in told["episodes"]] == [False, True]
    assert "another run_id" in told["episodes"][1]["error"]


def test_options_become_fields_of_the_request(chat, capsys):
    words = ["--ops", "agent,env", "--max-policy-tokens", "77", "--set", "policy.temperature=0.9"]
    _, told = outcome(capsys, *words, "--set", "env.difficulty=easy", "--set", "policy.colour=red", "--print-trace")
    assert (chat.bodies[0]["max_tokens"], chat.bodies[0]["temperature"], len(chat.bodies)) == (77, 0.9, 1)
    (episode,) = told["episodes"]
    assert list(episode["not_applied"]) == ["policy.config.colour"]
    assert episode["trace"]["metadata"]["further"]["env_config"] == {"difficulty": "easy"}


def test_files_and_traces_can_be_left_out(chat, capsys, tmp_path):
    outcome(capsys, "--no-trace", "--run-id", "a")
    outcome(capsys, "--no-trace-file", "--run-id", "b")
    assert not list(tmp_path.glob("*_trace.json"))
    outcome(capsys, "--trace-path", "sub/mine.json", "--trace-format", "compact", "--run-id", "c")
    assert json.loads((tmp_path / "sub" / "mine.json").read_text())["lm_calls"]


def test_without_an_address_the_backends_models_play(chat, capsys, monkeypatch):
    class Backend:
        def full_id(self, name):
            return {"latest:sft": "fft:crafter-tiny:job_1"}.get(name, name)

    monkeypatch.setattr(connections, "backend", lambda url: Backend())
    for words, model in (([], "crafter-expert"), (["--model", "latest:sft", "--fresh"], "fft:crafter-tiny:job_1")):
        assert main(["rollout", *SHORT, *words]) == 0
        assert chat.bodies[-1]["model"] == model and "tools" not in chat.bodies[-1], "asked as `run` asks"
    assert str(chat.requests[-1].url) == "http://127.0.0.1:8000/api/inference/v1/chat/completions"


def test_where_values_come_from_is_told(chat, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.env").write_text("TASK_APP_URL=http://there\n")
    monkeypatch.setenv("TASK_APP_URL", "")
    assert main(["rollout", "--env-file", "mine.env", "--model", "m", "--explain-config", "--json"]) == 0
    told = {c["name"]: (c["value"], c["from"]) for c in json.loads(capsys.readouterr().out)}
    assert told["base_url"] == ("http://there", "TASK_APP_URL in mine.env") and told["model"] == ("m", "--model")
    assert chat.asked == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "polcy.temperature=1"], "did you mean 'policy'?"),
        (["--set", "temperature=1"], "write policy.KEY=VALUE or env.KEY=VALUE"),
        (["--set", "policy.api_key=sk"], "--inference-api-key env:NAME"),
        (["--trace-path", "x.json", "--episodes", "2"], "one episode"),
        (["--api-key", "env:NOT_SET"], "the variable NOT_SET is not set"),
        (["--env-file", "nowhere.env"], "no such file"),
        (["--run-id", "a\x00b"], "run_id"),
        (["--episodes", "0"], "--episodes"),
    ],
)
def test_what_is_wrong_is_one_line(chat, capsys, words, says):
    assert main(["rollout", *TEACHER, *words]) == 2
    err = capsys.readouterr().err
    assert says in err and len(err.strip().splitlines()) == 1
