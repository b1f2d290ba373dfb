"""`serve`, `deploy`, `modal-serve`: what they start, what they would do, which option belongs to which runtime."""

from __future__ import annotations

import json
import os

import pytest

from crafter_pipeline import container, deployment
from crafter_pipeline.cli import main
from tests.standins.fake_docker import install_docker


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ENVIRONMENT_API_KEY", raising=False)
    monkeypatch.delenv("GROQ_API_KEY", raising=False)


@pytest.fixture
def served(monkeypatch):
    """What the task app would be started with, and the variables that it would see."""
    starts = []

    def start(words):
        starts.append((words, dict(os.environ)))
        return 0

    monkeypatch.setattr("task_app.__main__.main", start)
    return starts


def planned(capsys, *words):
    assert main([*words, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# --------------------------------------------------------------------------- this machine


def test_the_documented_serve_takes_files_of_variables_and_says_where_traces_go(served, tmp_path):
    (tmp_path / "a.env").write_text("GROQ_API_KEY=first\nENVIRONMENT_API_KEY=\n")
    (tmp_path / "b.env").write_text("GROQ_API_KEY=second\nENVIRONMENT_API_KEY=key\n")
    words = ["--env-file", "a.env", "--env-file", "b.env", "--host", "127.0.0.1", "--port", "8001"]
    assert main(["serve", *words, "--trace", "traces/v3", "--trace-db", "traces/v3/synth_ai.db", "--no-reload"]) == 0
    ((started, variables),) = served
    assert started == [
        "grpo-crafter", "--host", "127.0.0.1", "--port", "8001",
        "--trace", "traces/v3", "--trace-db", "traces/v3/synth_ai.db",
    ]  # fmt: skip
    assert (variables["GROQ_API_KEY"], variables["ENVIRONMENT_API_KEY"]) == ("first", "key")


def test_deploying_with_uvicorn_is_serving(served):
    assert main(["deploy", "math", "--runtime", "uvicorn", "--port", "8009", "--trace", "t", "--reload"]) == 0
    ((started, _),) = served
    assert started == ["math", "--host", "127.0.0.1", "--port", "8009", "--trace", "t", "--reload"]


def test_a_dry_run_of_uvicorn_tells_the_command(capsys, served):
    told = planned(capsys, "deploy", "grpo-crafter-task-app", "--runtime", "uvicorn", "--trace", "t")
    assert told["command"] == "crafter-pipeline serve grpo-crafter --host 127.0.0.1 --port 8001 --trace t".split()
    assert told["url"] == "http://127.0.0.1:8001" and told["asks_for_key"] is False and served == []


def test_a_dry_run_of_docker_tells_image_and_command_and_no_key(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no docker there
    monkeypatch.setenv("ENVIRONMENT_API_KEY", "sk-secret")
    told = planned(capsys, "deploy", "--runtime", "docker", "--port", "8009")
    assert told["build"][:2] == ["docker", "build"] and told["command"][:2] == ["docker", "run"]
    assert "ENVIRONMENT_API_KEY" in told["variables"] and "sk-secret" not in json.dumps(told)
    assert planned(capsys, "deploy", "--runtime", "docker", "--image", "mine:1")["build"] is None


def test_deploying_with_docker_builds_and_runs(capsys, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CRAFTER_PIPELINE_STATE", str(tmp_path / "state"))
    diary = install_docker(tmp_path / "bin")
    ran = []
    monkeypatch.setattr(container, "main", lambda words: ran.append(words) or 0)
    assert main(["deploy", "math", "--runtime", "docker", "--port", "8009", "--trace", "t"]) == 0
    assert [json.loads(line)["words"][0] for line in diary.read_text().splitlines()] == ["version", "build"]
    assert ran == [["math", "--image", container.IMAGE, "--traces", str(tmp_path / "t"), "--port", "8009"]]
    assert "export TASK_APP_URL=http://127.0.0.1:8009" in capsys.readouterr().out


# --------------------------------------------------------------------------- Modal


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        (["deploy", "grpo-crafter"], "deploy"),
        (["deploy", "grpo-crafter", "--runtime", "modal", "--modal-mode", "serve"], "serve"),
        (["modal-serve", "grpo-crafter"], "serve"),
    ],
)
def test_a_dry_run_of_modal_asks_for_a_plan_alone(capsys, monkeypatch, tmp_path, words, mode):
    def plan(app, *, name, secret, dry_run):
        assert dry_run
        return {"app": app, "name": name, "secret": secret}

    monkeypatch.setattr(deployment, "deploy_modal", plan)
    (tmp_path / "my.env").write_text("ENVIRONMENT_API_KEY=sk-secret\n")
    told = planned(capsys, *words, "--name", "crafter-blogpost", "--env-file", "my.env")
    assert (told["mode"], told["name"], told["app"]) == (mode, "crafter-blogpost", "grpo-crafter")
    assert told["secret_command"] == "modal secret create crafter-pipeline --from-dotenv my.env"
    assert "sk-secret" not in json.dumps(told)


def test_a_deployment_ends_with_its_address(capsys, monkeypatch):
    asked = []

    def deploy(app, **options):
        asked.append((app, options))
        return {"url": "https://me--x.modal.run"}

    monkeypatch.setattr(deployment, "deploy_modal", deploy)
    assert main(["deploy", "grpo-crafter", "--name", "grpo-crafter-task-app"]) == 0
    assert asked == [("grpo-crafter", {"name": "grpo-crafter-task-app", "secret": "crafter-pipeline"})]
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "export TASK_APP_URL=https://me--x.modal.run"
    assert "modal secret create crafter-pipeline --from-dotenv .env" in said.err
    assert "ENVIRONMENT_API_KEY is not set here" in said.err


def test_serving_from_modal_tells_the_address_while_it_serves(capsys, monkeypatch):
    monkeypatch.setattr(deployment, "serve_modal", lambda app, *, serving, **_: serving("https://me--x.modal.run"))
    assert main(["modal-serve", "math", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["url"] == "https://me--x.modal.run"


# --------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["deploy", "--port", "1"], "--port is for --runtime uvicorn or docker, not modal"),
        (["deploy", "--runtime", "uvicorn", "--modal-mode", "serve"], "--modal-mode is for --runtime modal"),
        (["deploy", "--runtime", "docker", "--reload"], "--reload is for --runtime uvicorn, not docker"),
        (["deploy", "--runtime", "uvicorn", "--json"], "add --dry-run"),
        (["deploy", "--env-file", "nowhere.env"], "nowhere.env: no such file"),
        (["serve", "--env-file", "nowhere.env"], "nowhere.env: no such file"),
        (["backend", "--env-file", "nowhere.env"], "nowhere.env: no such file"),
        (["deploy", "chess"], "Known: grpo-crafter"),
        (["serve", "chess"], "Known: grpo-crafter"),
        (["deploy", "--runtime", "docker", "chess"], "Known: grpo-crafter"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, words, says):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert says in err.splitlines()[-1] and "Traceback" not in err
