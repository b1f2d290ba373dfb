"""`crafter-pipeline task-app validate`: what it plays, what it prints, how it ends."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient

import crafter_pipeline.cli.task_app as command
from crafter_pipeline import environments
from crafter_pipeline.cli import main
from crafter_pipeline.clients.task_app import TaskAppClient
from crafter_pipeline.validation import players
from task_app.app import make_app
from tests.standins.live_environments import WALK, ToyTaskApp, WalkExpert

SHORT = ["--seeds", "2", "--max-env-steps", "20"]


@pytest.fixture
def toy(monkeypatch):
    """Serve a toy environment: `toy("unstable")`."""
    monkeypatch.setitem(environments.ENVIRONMENTS, "walk", WALK)
    monkeypatch.setitem(players.EXPERTS, "walk", WalkExpert)

    def served(*defects: str) -> ToyTaskApp:
        app = ToyTaskApp("walk", *defects)

        @contextmanager
        def client(*given):
            yield app.client()

        monkeypatch.setattr(command, "_served", client)
        return app

    return served


def test_a_fit_environment_is_a_table_and_zero(toy, capsys):
    toy()
    assert main(["task-app", "validate", "walk", *SHORT]) == 0
    out = capsys.readouterr().out
    assert "walk is fit for training" in out
    assert "(best of 3)" in out, "of those that do one thing only the worst offender is shown"


def test_an_unfit_one_names_the_check_the_remedy_and_ends_with_six(toy, capsys):
    toy("unstable")
    assert main(["task-app", "validate", "walk", *SHORT, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    (check,) = [c for c in report["checks"] if c["name"] == "determinism"]
    assert check["state"] == "failed" and "seed" in check["remedy"] and check["numbers"]["seeds"] == 2


def test_a_shaping_from_a_file_and_from_words(toy, tmp_path, capsys):
    app = toy()
    file = tmp_path / "rewards.toml"
    file.write_text("[step_rewards]\nstrategy = 'per_achievement'\nindicator_lambda = 2.0\n")
    words = ["--rewards", str(file), "--set", "indicator_lambda=3.0"]
    main(["task-app", "validate", "walk", *SHORT, *words, "--json"])
    shaping = json.loads(capsys.readouterr().out)["step_rewards"]
    assert shaping == {
        "enabled": True, "mode": "decision_stepwise", "strategy": "per_achievement", "indicator_lambda": 3.0,
    }  # fmt: skip
    assert all(b["config"]["step_rewards"] == shaping for path, b in app.requests if path == "/create" and b)


def test_it_serves_the_app_itself_and_says_what_is_wrong_with_ours(capsys):
    """The real task app as a child, with a key of its own."""
    assert main(["task-app", "validate", "math", "--seeds", "3", "--json"]) == 0, capsys.readouterr().out
    checks = {c["name"]: c["state"] for c in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["auth"] == checks["determinism"] == checks["solution leaks"] == "passed"


@pytest.mark.parametrize(
    "words, code, says",
    [
        (["no-such-game"], 2, "There is no environment"),
        (["--url", "http://127.0.0.1:9"], 1, "No task app at http://127.0.0.1:9"),
        (["--api-key", "k"], 2, "give its --url too"),
        (["--url", "http://127.0.0.1:9", "--api-key", "env:NOT_SET"], 2, "the variable NOT_SET is not set"),
        (["--env-file", "nowhere.env"], 2, "no such file"),
        (["--seeds", "0"], 2, "--seeds"),
        (["--rewards", "nowhere.toml"], 2, "no such config file"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, monkeypatch, words, code, says):
    monkeypatch.setattr("crafter_pipeline.clients.http.FIRST_WAIT_SECONDS", 0.01)
    assert main(["task-app", "validate", *words]) == code
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err


def test_a_key_on_the_command_line_is_taken_with_a_warning(capsys):
    assert command.read_key("--api-key", "sk_1") == "sk_1"
    assert "env:NAME" in capsys.readouterr().err
    assert command.read_key("--api-key", "env:K", {"K": "sk_2"}) == "sk_2"
    assert command.read_key("--api-key", "") is None
    assert capsys.readouterr().err == ""


def test_a_named_key_may_stand_in_the_env_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECOND", "environment")
    (tmp_path / ".env").write_text("FIRST=file\nSECOND=file\n")
    assert command.read_key("--api-key", "env:FIRST") == "file"
    assert command.read_key("--api-key", "env:SECOND") == "environment"


def test_the_published_spellings_of_validate_mean_the_same(toy, capsys):
    app = toy()
    assert main(["task-app", "validate", "walk", "--min-instances", "2", "--max-env-steps", "20", "-v"]) == 0
    out = capsys.readouterr().out
    assert ": 2 seeds, 20 steps" in out and "(seeds 2, steps_compared" in " ".join(out.split())
    assert app.requests


def test_the_list_names_each_environment_and_what_else_it_is_called(capsys):
    assert main(["task-app", "list"]) == 0
    out = capsys.readouterr().out
    assert "22 achievements" in out and "grpo-crafter-task-app" in out
    assert main(["task-app", "list", "--json"]) == 0
    listed = {e["app"]: e for e in json.loads(capsys.readouterr().out)}
    assert listed.keys() == {"grpo-crafter", "math"} and "math-single-step" in listed["math"]["aliases"]


@pytest.fixture
def crafter(monkeypatch):
    """The real task app, asked by `task-app info`; returns what it was asked with."""
    asked = []
    with TestClient(make_app("grpo-crafter")) as http:
        monkeypatch.setattr(command, "client_at", lambda *given: asked.append(given) or TaskAppClient(http))
        yield asked


def test_info_tells_what_the_task_app_says_of_itself(crafter, capsys, monkeypatch):
    monkeypatch.setenv("K", "sk_1")
    words = ["--base", "http://there:1", "--api-key", "env:K", "--seed", "1", "--seed", "2"]
    assert main(["task-app", "info", *words]) == 0
    assert crafter == [("http://there:1", "sk_1")]
    lines = capsys.readouterr().out.splitlines()
    assert "Crafter" in lines[0] and any(line.startswith("seed 2") and "traits" in line for line in lines)
    assert main(["task-app", "info", *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [task["dataset"]["config"]["seed"] for task in told["tasks"]] == [1, 2]
    assert told["taskset"]["id"] == "crafter_classic_procedural" and told["info"]["limits"]


def test_info_of_nothing_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("crafter_pipeline.clients.http.FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setenv("TASK_APP_URL", "http://127.0.0.1:9")
    assert main(["task-app", "info"]) == 1
    assert "No task app at http://127.0.0.1:9" in capsys.readouterr().err


def test_a_client_has_the_key_that_is_given_or_else_the_settings(monkeypatch):
    monkeypatch.setenv("ENVIRONMENT_API_KEY", "own")
    for given, sent in (("theirs", "theirs"), (None, "own")):
        client = command.client_at("http://there:1", given)
        assert client._http.headers["x-api-key"] == sent
