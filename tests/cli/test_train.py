"""`crafter-pipeline train` against a stand-in for the hosted backend, and against ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from crafter_pipeline import connections
from crafter_pipeline.cli import asking, main
from crafter_pipeline.cli.following import Chart, Lines, chart
from crafter_pipeline.clients.backend import BackendClient, Job, JobEvent
from crafter_pipeline.clients.task_app import TaskAppClient
from crafter_pipeline.errors import BackendError
from crafter_pipeline.processes import Service
from tests.standins.hosted_backend import FAILS, NEVER_ENDS, HostedBackend
from train_app.app import make_app

RECIPES = sorted(connections.project_root().glob("configs/recipes/*.toml"))
TRAINING = [path for path in RECIPES if "crafter-pipeline train --type" in path.read_text()]
URL = "http://backend:8000"
TASK = "http://task-app:8001"
ROW = {"messages": [{"role": "user", "content": "day 1"}, {"role": "assistant", "content": "noop"}]}
SFT = """
[algorithm]
type = "offline"
method = "sft"
variety = "fft"
[job]
model = "Qwen/Qwen3-4B"
data = "rows.jsonl"
[compute]
gpu_type = "H100"
gpu_count = 4
[hyperparameters]
n_epochs = 2
learning_rate = 8e-6
"""
RL = """
type = "rl"
[compute]
gpu_type = "H100"
gpu_count = 8
[model]
source = "latest:sft"
[rollout]
max_turns = 10
episodes_per_batch = 64
"""
NO_VARIABLES = ("SYNTH_API_KEY", "ENVIRONMENT_API_KEY", "BACKEND_BASE_URL", "TASK_APP_URL")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of its own with two recipes and a dataset of four rows; no variable is set."""
    monkeypatch.chdir(tmp_path)
    for name in NO_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    Path("sft.toml").write_text(SFT)
    Path("rl.toml").write_text(RL)
    Path("rows.jsonl").write_text("".join(json.dumps(ROW) + "\n" for _ in range(4)))
    return tmp_path


@pytest.fixture
def task_app(monkeypatch):
    """What a task app answers, by path."""
    answers = {"/health": httpx.Response(200, json={"healthy": True}), "/task_info": httpx.Response(200, json={})}
    transport = httpx.MockTransport(lambda request: answers[request.url.path])
    http = httpx.Client(base_url=TASK, transport=transport)
    monkeypatch.setattr(connections, "task_app", lambda url: TaskAppClient(http))
    return answers


@pytest.fixture
def hosted(place, task_app, monkeypatch):
    """The hosted backend, its key in the environment."""
    hosted = HostedBackend()
    headers = {"Authorization": f"Bearer {hosted.key}"}
    with TestClient(hosted.app, base_url=URL, headers=headers) as http:
        monkeypatch.setattr(connections, "backend", lambda url: BackendClient(http))
        monkeypatch.setenv("BACKEND_BASE_URL", URL)
        monkeypatch.setenv("SYNTH_API_KEY", hosted.key)
        monkeypatch.setenv("ENVIRONMENT_API_KEY", "env-key")
        yield hosted


@pytest.fixture
def ours(place, task_app, monkeypatch):
    """Our own backend, whose supervisor rests. Its table."""
    app = make_app(place / "data", api_key=None, aliases={"Qwen/Qwen3-4B": "crafter-tiny"})
    http = TestClient(app, base_url="http://127.0.0.1:8000")
    monkeypatch.setattr(connections, "backend", lambda url: BackendClient(http))
    return app.state.store


def train(*arguments: str) -> int:
    return main(["train", "--poll-interval", "0.01", *arguments])


def test_a_fine_tuning_goes_from_rows_to_an_id(hosted, capsys):
    assert train("--type", "sft", "--config", "sft.toml", "--save-id", "ids/model.txt") == 0
    (job,) = hosted.jobs.values()
    told = capsys.readouterr()
    assert job.model_id == f"fft:Qwen/Qwen3-4B:{job.id}"
    assert Path("ids/model.txt").read_text() == f"{job.model_id}\n"
    assert told.out.splitlines()[-1] == job.model_id
    assert re.search(r"^\[\d\d:\d\d:\d\d\] status=running$", told.err, re.M)
    assert re.search(r"^\[\d+\] sft\.job\.completed \(info\): ", told.err, re.M)
    assert [line for line in told.err.splitlines() if line.startswith("train.loss=")] == [
        "train.loss=1 (step=1)",
        "train.loss=0.5 (step=2)",
        "train.loss=0.333333 (step=3)",
    ]
    assert "timeline=" in told.err
    assert hosted.contents[job.payload["training_file_id"]] == Path("rows.jsonl").read_bytes()
    assert [r.path for r in hosted.asked("POST")] == [
        "/api/files",
        "/api/learning/jobs",
        f"/api/learning/jobs/{job.id}/start",
    ]


def test_what_was_printed_is_what_is_sent(hosted, capsys):
    assert train("--config", "sft.toml", "--dry-run") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["training_file_id"] == f"upload:{Path('rows.jsonl').absolute()}" and not hosted.requests
    printed["hyperparameters"]["lora_rank"] = 8
    Path("edited.json").write_text(json.dumps(printed))
    assert train("--payload", "edited.json", "--examples", "3", "--no-poll") == 0
    (job,) = hosted.jobs.values()
    told = capsys.readouterr()
    assert told.out == f"{job.id}\n" and job.started
    (file_id,) = hosted.files
    assert job.payload == {**printed, "training_file_id": file_id}
    assert hosted.contents[file_id].count(b"\n") == 3 and hosted.files[file_id]["filename"] == "rows.jsonl"


def test_episodes_during_a_fine_tuning_need_a_task_app(hosted, capsys):
    plays = ["--config", "sft.toml", "--set", "hyperparameters.dev={every=10, seeds=[900000]}", "--no-poll"]
    assert train(*plays) == 2
    assert "Give --task-url" in capsys.readouterr().err
    assert train(*plays, "--task-url", TASK) == 0
    (job,) = hosted.jobs.values()
    assert job.payload["metadata"]["task_app_url"] == TASK
    assert job.payload["hyperparameters"]["dev"] == {"every": 10, "seeds": [900_000]}


def test_a_validation_file_is_sent_beside_the_rows(hosted):
    Path("held.jsonl").write_text(json.dumps(ROW) + "\n")
    held = ["--set", "data.validation_path=held.jsonl", "--set", "training.validation.eval_steps=2"]
    assert train("--config", "sft.toml", *held, "--examples", "2", "--no-poll") == 0
    (job,) = hosted.jobs.values()
    rows, validation = hosted.contents.values()
    assert (rows.count(b"\n"), validation) == (2, Path("held.jsonl").read_bytes())
    (file_id,) = job.payload["metadata"]["effective_config"]["data"]["validation_files"]
    assert hosted.contents[file_id] == validation and job.payload["hyperparameters"]["eval_steps"] == 2


def test_a_proxys_error_page_is_a_line(hosted, capsys):
    hosted.broken = lambda request: httpx_page() if request.url.path == "/api/files" else None
    assert train("--config", "sft.toml") == 1
    said = capsys.readouterr().err
    assert "502" in said and said.count("\n") == 1 and "<" not in said


def test_a_reinforcement_learning_job_carries_its_recipe_and_full_ids(hosted, capsys):
    hosted.add_model("fft:Qwen/Qwen3-4B:job_00000000000000aa")
    assert train("--type", "rl", "--config", "rl.toml", "--task-url", TASK, "--idempotency", "k", "--json") == 0
    (job,) = hosted.jobs.values()
    outcome = json.loads(capsys.readouterr().out)
    assert (outcome["job_id"], outcome["status"], outcome["model_id"]) == (job.id, "succeeded", job.model_id)
    assert outcome["parent"] == "fft:Qwen/Qwen3-4B:job_00000000000000aa"
    data = job.payload["data"]
    assert data["model"] == data["config"]["model"]["source"] == outcome["parent"]
    assert data["config"]["rollout"]["episodes_per_batch"] == 64
    assert data["endpoint_base_url"] == data["config"]["services"]["task_url"] == TASK
    (created,) = hosted.asked("POST", "/api/rl/jobs")
    assert created.headers["idempotency-key"] == "k"
    assert [r.body for r in hosted.asked("POST", "/api/rl/verify_task_app")] == [{"endpoint_base_url": TASK}]


@pytest.mark.parametrize("recipe", [path for path in TRAINING if "tiny" not in path.stem], ids=lambda path: path.stem)
def test_the_hosted_backend_takes_every_recipe(hosted, recipe, capsys):
    hosted.add_model("fft:Qwen/Qwen3-4B:job_00000000000000aa")
    sft = "train --type sft" in recipe.read_text()
    needs = ["--dataset", "rows.jsonl"] if sft else ["--task-url", TASK]
    assert train("--config", str(recipe), *needs, "--no-poll") == 0
    assert train("--config", str(recipe), "--dry-run") == 0, "offline, and without its dataset"
    (job,) = hosted.jobs.values()
    assert job.kind == ("sft" if sft else "rl") and capsys.readouterr().out.startswith(job.id)


def test_a_job_without_a_key_is_a_job_of_its_own(hosted):
    for _ in range(2):
        assert train("--config", "sft.toml", "--no-poll") == 0
    assert train("--config", "sft.toml", "--no-poll", "--idempotency", "k") == 0
    assert train("--config", "sft.toml", "--no-poll", "--idempotency", "k") == 0
    assert len(hosted.jobs) == 3


def test_our_backend_takes_both(ours, capsys):
    """The jobs that it makes of the two recipes."""
    few = ["--set", "hyperparameters.max_steps=2", "--set", "hyperparameters.suffix=mine", "--examples", "2"]
    assert train("--config", "sft.toml", *few, "--no-poll") == 0
    assert (
        train("--config", "rl.toml", "--model", "Qwen/Qwen3-4B", "--task-url", "http://127.0.0.1:9", "--no-poll") == 1
    )
    assert "cannot use the task app" in capsys.readouterr().err
    (job,) = ours.list()
    assert job.name == "mine"
    assert (job.kind, job.base_model, job.spec["config"]["max_steps"]) == ("sft", "Qwen/Qwen3-4B", 2)
    assert job.spec["config"]["learning_rate"] == 8e-6


def test_a_failed_job_is_one_and_its_last_words(hosted, capsys):
    hosted.scripts["sft"] = FAILS
    assert train("--config", "sft.toml", "--json", "--save-id", "id.txt") == 1
    told = capsys.readouterr()
    outcome = json.loads(told.out)
    assert (outcome["status"], outcome["model_id"]) == ("failed", None) and "CUDA out of memory" in outcome["error"]
    last = told.err.splitlines()[-1]
    assert "CUDA out of memory" in last and f"status jobs logs {outcome['job_id']}" in last
    assert not Path("id.txt").exists()


def test_the_state_error_is_an_end(hosted, capsys):
    hosted.scripts["sft"] = ("running", "error")
    assert train("--config", "sft.toml") == 1
    assert "error" in capsys.readouterr().err.splitlines()[-1]


def test_a_job_that_never_ends_is_three(hosted, capsys):
    hosted.scripts["sft"] = NEVER_ENDS
    assert train("--config", "sft.toml", "--poll-timeout", "0.1") == 3
    (job,) = hosted.jobs
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"status jobs get {job}" in last and not hosted.asked("POST", ".*cancel")
    assert train("--config", "sft.toml", "--set", "job.poll_seconds=0.1") == 3


def test_an_interrupt_leaves_the_job_and_says_how_to_end_it(hosted, monkeypatch, capsys):
    monkeypatch.setattr(BackendClient, "wait", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert train("--config", "sft.toml") == 130
    (job,) = hosted.jobs
    assert f"status jobs cancel {job}" in capsys.readouterr().err and not hosted.asked("POST", ".*cancel")


def test_a_backend_that_comes_back_is_waited_for(hosted, capsys):
    away = iter((False, True, True, False, True))

    def gateway(request):
        lost = request.method == "GET" and "/jobs/" in request.url.path and next(away, False)
        return httpx_page() if lost else None

    hosted.broken = gateway
    assert train("--config", "sft.toml") == 0
    err = capsys.readouterr().err
    assert err.count("Trying again") >= 1 and err.count("train.loss=1 (step=1)") == 1


def httpx_page():
    from starlette.responses import HTMLResponse

    return HTMLResponse("<html><h1>502 Bad Gateway</h1></html>", 502)


def test_where_each_value_comes_from(hosted, monkeypatch, capsys):
    Path("more.env").write_text(f"TASK_APP_URL={TASK}\n")
    words = ["--set", "rollout.max_turns=3", "--env-file", "more.env", "--poll-timeout", "9"]
    monkeypatch.setenv("TASK_APP_URL", "")
    assert train("--config", "rl.toml", *words, "--explain-config", "--json") == 0
    told = capsys.readouterr().out
    found = {line["name"]: (line["value"], line["from"]) for line in json.loads(told)}
    assert found["backend"] == (URL, "BACKEND_BASE_URL")
    assert found["task_url"] == (TASK, "TASK_APP_URL in more.env")
    assert found["model"] == ("latest:sft", "rl.toml [model].source")
    assert found["rollout.max_turns"] == (3, "--set")
    assert found["rollout.episodes_per_batch"] == (64, "rl.toml [rollout].episodes_per_batch")
    assert found["training.learning_rate"] == (5e-5, "default")
    assert found["poll_timeout"] == (9.0, "--poll-timeout")
    assert found["SYNTH_API_KEY"] == ("(set)", "SYNTH_API_KEY") and hosted.key not in told
    assert not hosted.requests


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "gone.toml"], "gone.toml: no such config file"),
        ([], "exactly one of them"),
        (["--config", "sft.toml", "--payload", "x.json"], "exactly one of them"),
        (["--payload", "gone.json"], "cannot be read"),
        (["--payload", "sft.toml"], "not valid JSON"),
        (["--payload", "rl.json", "--model", "m"], "--model is for a recipe"),
        (["--config", "sft.toml", "--type", "rl"], '[algorithm].type = "offline" means sft'),
        (["--config", "sft.toml", "--set", "hyperparameters.learnin_rate=1"], "did you mean 'learning_rate'?"),
        (["--config", "sft.toml", "--examples", "0"], "--examples 0: more than 0"),
        (["--config", "sft.toml", "--poll-timeout", "0"], "more than 0"),
        (["--config", "sft.toml", "--save-id", "x", "--no-poll"], "leave out --no-poll"),
        (["--config", "sft.toml", "--task-url", TASK], "plays no episodes"),
        (["--config", "sft.toml", "--set", "job.data=''", "--set", "job.data_path=''"], "names no dataset"),
        (["--config", "rl.toml"], "Give --task-url, set TASK_APP_URL, or write [services].task_url"),
        (["--config", "rl.toml", "--task-url", "task-app:8001"], "does not begin with http://"),
        (["--config", "rl.toml", "--task-url", TASK, "--dataset", "rows.jsonl"], "--dataset is for fine-tuning"),
        (["--config", "rl.toml", "--task-url", TASK, "--examples", "2"], "--examples is for fine-tuning"),
        (["--config", "rl.toml", "--task-url", "https://YOUR-TASK-APP.modal.run"], "still the placeholder"),
        (["--config", "rl.toml", "--task-url", TASK, "--set", "model.base=m"], "exactly one model"),
        (
            ["--config", "rl.toml", "--task-url", "https://x.example", "--backend", "https://b.example"],
            "No key for the tr",
        ),
        (["--config", "sft.toml", "--env-file", "gone.env"], "--env-file gone.env: no such file"),
        (["--config", "sft.toml", "--stream-format", "pie"], "pie"),
    ],
)
def test_wrong_usage_is_two_and_a_line(place, task_app, capsys, arguments, words):
    Path("rl.json").write_text('{"job_type": "rl"}')
    assert train(*arguments) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "sft.toml", "--dataset", "gone.jsonl"], "--dataset gone.jsonl: no such file"),
        (["--config", "sft.toml", "--set", "job.data=gone.jsonl"], "there is no gone.jsonl"),
        (["--config", "sft.toml", "--set", "data.validation_path=gone.jsonl"], "there is no gone.jsonl"),
        (["--config", "sft.toml", "--dataset", "bad.jsonl"], "bad.jsonl, line 2: not valid JSON"),
        (["--config", "sft.toml", "--dataset", "bad.jsonl", "--examples", "3"], "bad.jsonl, line 2: not valid JSON"),
        (["--config", "sft.toml", "--dataset", "empty.jsonl"], "the file holds no examples"),
        (["--config", "sft.toml", "--model", "Qwen/Qwen3-4b"], "Did you mean 'Qwen/Qwen3-4B'?"),
        (["--config", "rl.toml", "--task-url", TASK], "no trained model 'latest:sft'"),
    ],
)
def test_what_cannot_be_trained_is_one_and_a_line(hosted, capsys, arguments, words):
    Path("bad.jsonl").write_text(json.dumps(ROW) + "\n{]\n")
    Path("empty.jsonl").write_text("\n")
    assert train(*arguments) == 1
    said = capsys.readouterr()
    assert words in said.err.splitlines()[-1] and "/tmp" not in said.err.replace(str(Path.cwd()), "")
    assert not hosted.jobs


@pytest.mark.parametrize(
    ("path", "answer", "words"),
    [
        ("/health", httpx.Response(401, json={"detail": "no"}), "Set ENVIRONMENT_API_KEY"),
        ("/health", httpx.Response(200, text="<html>"), "is no task app"),
        ("/task_info", httpx.Response(200, text="<html>"), "is no task app's"),
        ("/task_info", httpx.Response(500, text="broken"), "answered 500 to GET /task_info"),
    ],
)
def test_a_task_app_is_looked_at_before_the_job_is_sent(hosted, task_app, capsys, path, answer, words):
    task_app[path] = answer
    assert train("--config", "rl.toml", "--model", "Qwen/Qwen3-4B", "--task-url", TASK) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not hosted.jobs


def test_a_task_app_that_the_backend_cannot_reach_gets_no_job(hosted, capsys):
    hosted.reaches_task_apps = False
    assert train("--config", "rl.toml", "--model", "Qwen/Qwen3-4B", "--task-url", TASK) == 1
    assert "Both need the same ENVIRONMENT_API_KEY" in capsys.readouterr().err and not hosted.jobs


def test_a_file_that_gets_lost_on_the_way_is_never_trained_on(hosted, monkeypatch, capsys):
    monkeypatch.setattr(hosted, "_file", lambda *a: {"status": "failed"})
    assert train("--config", "sft.toml") == 1
    assert "could not take the file" in capsys.readouterr().err and not hosted.jobs


def test_a_rehearsal_needs_nobody(place, monkeypatch, capsys):
    monkeypatch.setattr(connections, "backend", lambda url: pytest.fail("a rehearsal asks nobody"))
    Path("rows.jsonl").unlink()
    assert train("--config", "sft.toml", "--dry-run") == 0
    assert json.loads(capsys.readouterr().out)["training_file_id"] == "upload:rows.jsonl"
    assert train("--config", "sft.toml", "--set", "job.data=''", "--dry-run") == 0
    Path("p.json").write_text(capsys.readouterr().out)
    assert train("--payload", "p.json") == 2
    assert "training_file_id is still the placeholder" in capsys.readouterr().err
    assert train("--config", "rl.toml", "--dry-run") == 0
    told = capsys.readouterr()
    assert "No task app is named" in told.err
    Path("p.json").write_text(told.out)
    assert train("--payload", "p.json") == 2
    assert "data.endpoint_base_url is still the placeholder" in capsys.readouterr().err


# --------------------------------------------------------------------------- somebody at a terminal


@pytest.fixture
def somebody(monkeypatch):
    """Answers to questions, in order; each is given once."""
    answers: list[str] = []
    monkeypatch.setattr(asking, "somebody_is_there", lambda: True)
    monkeypatch.setattr(asking, "ask", lambda question, default="": answers.pop(0))
    return answers


def test_a_person_is_offered_the_files_of_variables(hosted, somebody, monkeypatch, capsys):
    monkeypatch.delenv("SYNTH_API_KEY")
    Path(".env.dev").write_text(f"SYNTH_API_KEY={hosted.key}\n")
    Path(".env.example").write_text("SYNTH_API_KEY=\n")
    somebody += ["7", "1"]
    assert train("--config", "sft.toml", "--no-poll") == 0
    said = capsys.readouterr().err
    assert "1) " in said and ".env.dev" in said and ".env.example" not in said and not somebody
    assert Path(".env.dev").read_text() == f"SYNTH_API_KEY={hosted.key}\n" and hosted.key not in said


def test_a_person_is_asked_for_the_task_app(hosted, somebody, monkeypatch):
    hosted.add_model("fft:Qwen/Qwen3-4B:job_00000000000000aa")
    monkeypatch.setattr(asking, "modal_urls", lambda: [("crafter", "https://me--crafter.modal.run")])
    for typed, url in ((["1"], "https://me--crafter.modal.run"), (["0", TASK], TASK)):
        somebody += typed
        assert train("--config", "rl.toml", "--no-poll") == 0
        assert list(hosted.jobs.values())[-1].payload["data"]["endpoint_base_url"] == url and not somebody


def test_modal_is_asked_only_where_it_is_set_up(place, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: place)
    monkeypatch.delenv("MODAL_TOKEN_ID", raising=False)
    monkeypatch.setattr(asking.subprocess, "run", lambda *a, **k: pytest.fail("Modal is not set up"))
    assert asking.modal_urls() == []
    (place / ".modal.toml").write_text("")
    apps = [{"Description": "crafter", "State": "deployed"}, {"Description": "old", "State": "stopped"}]
    done = asking.subprocess.CompletedProcess([], 0, json.dumps(apps), "")
    monkeypatch.setattr(asking.subprocess, "run", lambda *a, **k: done)
    monkeypatch.setattr(asking, "_modal_url", lambda name: f"https://me--{name}.modal.run")
    assert asking.modal_urls() == [("crafter", "https://me--crafter.modal.run")]


# --------------------------------------------------------------------------- lines and curves


def test_a_curve_has_its_numbers():
    lines = chart("train.loss", [(step, 10.0 / step) for step in range(1, 201)], width=40, height=4)
    assert lines[0] == "train.loss = 0.05 (step 200)" and lines[-1].endswith("steps 1 to 200")
    assert len(lines) == 6 and max(map(len, lines)) <= 11 + 40
    assert lines[1].count("█") + lines[1].count("▇") >= 1, "the first share is the highest"
    assert chart("x", [(1, 2.0)])[0] == "x = 2 (step 1)"


def test_a_chart_keeps_curves_and_tells_warnings(capsys):
    told: list[str] = []
    shown = Chart(None, "job_1", told.append)  # type: ignore[arg-type]
    shown.status(Job("job_1", "running", None, None))
    shown.metrics(1, {"train.loss": 2.0, "train.learning_rate": 1e-5})
    shown.metrics(1, {"train.loss": 2.0})
    shown.metrics(2, {"train.loss": 1.0, "rl.loss": 3.0})
    shown.event(JobEvent(1, "sft.progress", "info", "on", {}))
    shown.event(JobEvent(2, "sft.warning", "warning", "careful\x1b[2J", {}))
    assert shown.curves == {"train.loss": [(1, 2.0), (2, 1.0)]}
    assert told == ["[2] sft.warning (warning): careful [2J"]
    assert "train.loss = 1 (step 2)" in str(shown._shown())


def test_a_refusal_is_not_waited_for():
    lines = Lines(None, "job_1", lambda line: None)  # type: ignore[arg-type]
    refused, away = BackendError("no"), BackendError("away")
    refused.status = 404
    assert lines.may_come_back(away) and not lines.may_come_back(refused)


# --------------------------------------------------------------------------- for real


@pytest.mark.slow
def test_two_recipes_train_a_stand_in_one_after_the_other(place, monkeypatch, capsys):
    """SFT on a few rows, then RL from its model through a task app; the student stands in for Qwen3-4B."""
    recipes = connections.project_root() / "configs" / "recipes"
    stand_in = ["--data", "data", "--alias", "Qwen/Qwen3-4B=crafter-tiny"]
    with (
        Service("training backend", "train_app", stand_in, log=place / "backend.log") as backend,
        Service("task app", "task_app", ["grpo-crafter", "--trace", "traces"], log=place / "task_app.log") as game,
    ):
        monkeypatch.setenv("BACKEND_BASE_URL", backend.url)
        monkeypatch.setenv("TASK_APP_URL", game.url)
        small = ["--dataset", "rows.jsonl", "--set", "hyperparameters.max_steps=2", "--set", "hyperparameters.seed=1"]
        assert train("--config", f"{recipes}/train_sft_qwen4b.toml", *small, "--save-id", "sft.id") == 0
        sft = Path("sft.id").read_text().strip()
        assert re.fullmatch(r"fft:Qwen/Qwen3-4B:job_[0-9a-f]{16}", sft)
        told = capsys.readouterr()
        assert told.out.splitlines()[-1] == sft and "crafter-tiny stands in for Qwen/Qwen3-4B" in told.err
        assert re.search(r"^train\.loss=\d+\.\d+ \(step=2\)$", told.err, re.M)

        small = ["training.iterations=1", "training.groups_per_iteration=1", "training.group_size=2"]
        small += ["rollout.max_turns=2", "policy.max_tokens=8", "evaluation.instances=1"]
        small += ["rollout.policy_config.observation=sparse"]
        changes = [word for change in small for word in ("--set", change)]
        assert train("--config", f"{recipes}/train_rl_from_sft.toml", *changes, "--json") == 0
        told = capsys.readouterr()
        outcome = json.loads(told.out)
        assert outcome["model_id"] == f"rl:Qwen/Qwen3-4B:{outcome['job_id']}" and outcome["parent"] == sft
        assert re.search(r"^rl\.rollouts=2 \(step=1\)$", told.err, re.M)
