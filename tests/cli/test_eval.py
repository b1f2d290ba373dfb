"""`crafter-pipeline eval`: the real task app and scripted models, from the command to its files."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from crafter_pipeline import connections, services
from crafter_pipeline.cli import main
from crafter_pipeline.clients.chat import ChatClient
from crafter_pipeline.clients.task_app import TaskAppClient
from crafter_pipeline.processes import Service
from crafter_pipeline.report import evaluation as report
from crafter_pipeline.settings import Settings
from crafter_pipeline.traces.reader import read_rollouts
from task_app.app import make_app
from tests.standins.chat_model import ScriptedChat
from train_app.builtin import NoObservation, builtin_models, completion

URL = "http://task-app.test"
RECIPES = sorted((Path(__file__).parents[2] / "configs/recipes").glob("*eval*.toml"))
RECIPE = """
[eval]
app_id = "grpo-crafter"
model = "crafter-expert"
seeds = "0-3"
max_turns = 12

[eval.policy_config]
temperature = 0.5
max_tokens = 64
"""
JUDGES = """
def many(payload, scale=1.0):
    assert payload["trace"]["event_history"] and payload["prompt"] and payload["completion"] is not None
    return scale * len(payload["response"]["metrics"]["details"]["achievements"])

def moody(payload):
    if payload["seed"] == 1:
        raise RuntimeError("not today")
    return 0.5
"""


class Models(ScriptedChat):
    """The built-in models, and `broken[model]`: what a model answers instead."""

    def __init__(self) -> None:
        super().__init__(self._say)
        self._models, self.broken = builtin_models(), {}

    def _say(self, body, number):
        if body["model"] in self.broken:
            return self.broken[body["model"]](body)
        if body["model"] not in self._models:
            return httpx.Response(404, json={"error": {"message": f"There is no model {body['model']!r}."}})
        try:
            content = completion(body["model"], self._models[body["model"]], body)
        except NoObservation as e:
            return httpx.Response(422, json={"error": {"message": str(e)}})
        return httpx.Response(200, content=content)

    @property
    def episodes(self) -> int:
        """How many were played."""
        return len({body["user"] for body in self.bodies})


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A task app at TASK_APP_URL over scripted models; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    for name in ("CRAFTER_TRACE_DB", "BACKEND_BASE_URL", "EVAL_MODEL", "MAX_TURNS", "CONCURRENCY", "DIFFICULTY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("NUM_EPISODES", raising=False)
    monkeypatch.setenv("TASK_APP_URL", URL)
    monkeypatch.setattr(services, "refuses", lambda url: False)
    monkeypatch.setattr(report, "render_evaluation", lambda told: "<html>")  # plots cost more than the episodes
    chat = Models()
    client = ChatClient(Settings(_env_file=None), transport=chat.transport(), tries=2, first_wait_seconds=0.001)
    with TestClient(make_app(chat=client, trace_dir=tmp_path / "served"), base_url=URL) as http:
        monkeypatch.setattr(connections, "task_app", lambda url: TaskAppClient(http))
        yield chat


render_evaluation = report.render_evaluation


def report_of(folder="out"):
    return json.loads(Path(folder, "report.json").read_text())


def test_two_models_are_compared_without_a_file(models, capsys, monkeypatch):
    monkeypatch.setattr(report, "render_evaluation", render_evaluation)
    command = ["eval", "--models", "crafter-expert,crafter-random", "--seeds", "0-5,9", "--max-turns", "25"]
    assert main([*command, "--out", "out"]) == 0
    told = report_of()
    random, teacher = told["evaluations"]
    assert (random["label"], teacher["label"], told["status"]) == ("random", "teacher", "succeeded")
    assert random["seeds"] == teacher["seeds"] == [0, 1, 2, 3, 4, 5, 9] and teacher["turns"] == 7 * 25
    assert teacher["ci95"][0] <= teacher["mean_achievements"] <= teacher["ci95"][1] <= 22
    (pair,) = told["comparisons"]
    assert (pair["a"], pair["b"]) == ("random", "teacher")
    assert (
        pair["delta"] == pytest.approx(teacher["mean_achievements"] - random["mean_achievements"]) and pair["delta"] > 0
    )
    rows = [row for row in told["rows"] if row["label"] == "teacher"]
    assert told["aggregate"]["teacher"]["avg_mean_return"] == pytest.approx(teacher["mean_reward"])
    assert teacher["mean_reward"] > 1, "the official score is not clamped"
    assert told["tokens"]["teacher"]["completion"] == sum(row["completion_tokens"] for row in rows) > 0
    with open("out/seeds.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["label"], int(row["seed"])) for row in table[:7]] == [("teacher", s) for s in (0, 1, 2, 3, 4, 5, 9)]
    assert len(table) == len(Path("out/seeds.jsonl").read_text().splitlines()) == 14
    page = Path("out/report.html").read_text()
    assert "<svg" in page and "teacher − random" in page and "collect wood" in page
    said = capsys.readouterr().out
    assert "teacher − random: +" in said and "out/report.html" in said and len(said) < 10_000


def test_the_same_command_plays_only_what_is_missing(models, capsys):
    command = ["eval", "--model", "crafter-expert", "--max-turns", "6", "--out", "out", "--json"]
    assert main([*command, "--seeds", "0-2"]) == main([*command, "--seeds", "0-2"]) == 0
    assert models.episodes == 3
    first, second = capsys.readouterr().out.split("\n}\n")[:2]
    assert [r["run_id"] for r in json.loads(first + "}")["rows"]] == [
        r["run_id"] for r in json.loads(second + "}")["rows"]
    ]
    assert main([*command, "--seeds", "0-4"]) == 0 and models.episodes == 5
    assert main([*command, "--seeds", "0-4", "--set", "temperature=0.7"]) == 0 and models.episodes == 10, (
        "asked in another way"
    )
    assert main([*command, "--seeds", "0-4", "--fresh"]) == 0 and models.episodes == 15, (
        "the ledger answers no fresh one"
    )
    assert len(report_of()["rows"]) == 5


def test_default_folders_differ_with_what_is_played(models):
    command = ["eval", "--model", "crafter-random", "--max-turns", "2"]
    for extra in (["--seeds", "0"], ["--seeds", "0"], ["--seeds", "1"], ["--seeds", "0", "--set", "temperature=0.7"]):
        assert main([*command, *extra]) == 0
    folders = [path.name for path in Path("evals").iterdir()]
    assert len(folders) == 3 and all(name.startswith("random-") for name in folders)


def test_traces_are_stored_with_the_scores_and_the_filter_finds_them(models, capsys):
    Path("judges.py").write_text(JUDGES)
    Path("recipe.toml").write_text(
        RECIPE + '[eval.judge.Many]\npath = "judges.py"\ncallable = "many"\nscale = 2.0\n'
        '[eval.judge.Moody]\npath = "judges.py"\ncallable = "moody"\n'
    )
    command = ["eval", "grpo-crafter", "--config", "recipe.toml", "--trace-db", "traces/eval.db", "--out", "out"]
    assert main([*command, "--split", "train"]) == 0
    told = report_of()
    assert (
        told["judges"]["teacher"]["Moody"] | {"mean": 0.5, "scored": 3, "missing": 1}
        == told["judges"]["teacher"]["Moody"]
    )
    many = [row["judge_scores"]["Many"] for row in told["rows"]]
    assert many == [2.0 * len(set(row["achievements"])) for row in told["rows"]] and told["untraced"] == 0
    assert capsys.readouterr().err.count("not today") == 1, "said once"
    rollouts = {rollout.seed: rollout for rollout in read_rollouts(Path("traces/eval.db"))}
    assert {seed: rollout.metadata["official_score"] for seed, rollout in rollouts.items()} == {
        row["seed"]: row["official_score"] for row in told["rows"]
    }
    assert rollouts[2].metadata["task_split"] == "train" and rollouts[2].metadata["judge_scores"]["Moody"] == 0.5
    least = sorted(many)[1]
    Path("filter.toml").write_text(
        '[filter]\ndb = "traces/eval.db"\noutput = "ft.jsonl"\nsplits = ["train"]\ntask_ids = ["crafter"]\n'
        f'models = ["crafter-expert"]\nmin_official_score = 0.1\nmin_judge_scores = {{ Many = {least}, Moody = 0.1 }}\n'
    )
    assert main(["filter", "--config", "filter.toml", "--json"]) == 0
    kept = {json.loads(line)["metadata"]["session_id"] for line in Path("ft.jsonl").read_text().splitlines()}
    assert kept == {
        row["run_id"]
        for row in told["rows"]
        if row["seed"] != 1 and row["judge_scores"]["Many"] >= least and row["official_score"] >= 0.1
    }


def test_a_judge_that_failed_is_asked_again_and_nothing_is_played_for_it(models):
    Path("judges.py").write_text(JUDGES)
    Path("recipe.toml").write_text(RECIPE + '[eval.judge.Moody]\npath = "judges.py"\ncallable = "moody"\n')
    command = ["eval", "grpo-crafter", "--config", "recipe.toml", "--trace-db", "traces/eval.db", "--out", "out"]
    assert main(command) == 0 and report_of()["judges"]["teacher"]["Moody"]["missing"] == 1
    calls = len(models.bodies)
    Path("judges.py").write_text(JUDGES.replace('raise RuntimeError("not today")', "return 1.5"))
    assert main(command) == 0 and len(models.bodies) == calls
    told = report_of()
    assert {row["seed"]: row["judge_scores"]["Moody"] for row in told["rows"]} == {0: 0.5, 1: 1.5, 2: 0.5, 3: 0.5}
    scores = {rollout.seed: rollout.metadata["judge_scores"] for rollout in read_rollouts(Path("traces/eval.db"))}
    assert scores[1] == {"Moody": 1.5}


def test_scores_reach_a_database_that_the_task_app_writes_itself(models, tmp_path):
    assert (
        main(["eval", "--model", "crafter-expert", "--seeds", "0-1", "--max-turns", "8", "--set", "return_trace=true"])
        == 0
    )
    (served,) = (tmp_path / "served").glob("*.db")
    assert (
        main(["eval", "--model", "crafter-expert", "--seeds", "0-1", "--max-turns", "8", "--trace-db", str(served)])
        == 0
    )
    rollouts = list(read_rollouts(served))
    assert len(rollouts) == 2 and all("official_score" in rollout.metadata for rollout in rollouts)
    (own,) = Path("evals").glob("*/traces.db")
    assert len(list(read_rollouts(own))) == 2, "return_trace without a database: beside the report"


def test_the_flat_file_and_its_variables(models, monkeypatch):
    Path("flat.toml").write_text(
        'type = "sft"\nmodel = "nobody"\nnum_episodes = 9\nmax_turns = 50\nconcurrency = 2\n'
        "[rollout.env_config.step_rewards]\n"
        'enabled = true\nmode = "decision_stepwise"\nstrategy = "consistent"\n'
    )
    for name, value in {
        "EVAL_MODEL": "crafter-expert",
        "NUM_EPISODES": "2",
        "MAX_TURNS": "9",
        "DIFFICULTY": "easy",
    }.items():
        monkeypatch.setenv(name, value)
    assert main(["eval", "--toml", "flat.toml", "--use-rollout", "--out", "out"]) == 0
    told = report_of()
    assert told["evaluations"][0]["seeds"] == [1, 2] and told["max_turns"] == 9
    assert told["env_config"]["difficulty"] == "easy" and told["not_applied"] == {}
    assert told["aggregate"]["teacher"]["stepwise_strategies"] == {"consistent": 2}
    assert main(["eval", "--toml", "flat.toml", "--seeds", "7", "--max-llm-calls", "3", "--out", "out"]) == 0
    told = report_of()
    assert (told["evaluations"][0]["seeds"], told["evaluations"][0]["turns"]) == ([7], 3), "a flag wins over a variable"


def test_a_suite_says_what_is_played_and_a_table_pools_what_was(models, capsys, monkeypatch):
    monkeypatch.setattr(report, "render_evaluation", render_evaluation)
    command = ["eval", "--suite", "crafter-50", "--split", "dev", "--seeds", "6", "--out", "dev"]
    assert main([*command, "--models", "crafter-random,crafter-expert"]) == 0
    told = report_of("dev")
    random, teacher = told["evaluations"]
    assert (told["suite"], told["environment"], told["max_turns"]) == ("crafter-50", "crafter", 50)
    assert (teacher["seeds"], teacher["max_steps"], teacher["split"]) == (list(range(900_000, 900_006)), 50, "dev")
    assert {player["policy"]["observation"] for player in told["players"]} == {"sparse"}
    rows = [row for row in told["rows"] if row["label"] == "teacher"]
    for row in rows:
        assert set(row["unlocked_at"]) == set(row["achievements"]) and 1 <= min(row["unlocked_at"].values())
        assert max(row["unlocked_at"].values()) <= row["env_steps"] == 50
    wood = sorted(row["unlocked_at"]["collect_wood"] for row in rows)
    assert teacher["first_unlock"]["collect_wood"] == (wood[2] + wood[3]) / 2
    assert teacher["mean_without_wake_up"] == teacher["mean_achievements"] - teacher["success_rates"]["wake_up"]
    low, high = teacher["success_ci95"]["collect_wood"]
    assert low < teacher["success_rates"]["collect_wood"] <= high
    assert (teacher["completion_tokens"], teacher["invalid_share"]) == (100.0, 0.0)
    (pair,) = told["comparisons"]
    assert pair["p_value"] == pair["p_holm"] < 0.1 and pair["seeds_to_see_0.3"] >= 6
    page = Path("dev/report.html").read_text()
    assert "suite crafter-50" in page and "seeds to see 0.3" in page and "without<br>wake up" in page
    capsys.readouterr()

    assert main(["eval-table", "dev", "--success"]) == 0
    table = capsys.readouterr().out
    assert f"| teacher | 1 | 6 | {teacher['mean_achievements']:.2f} [" in table and "900000 to 900005 (dev)" in table
    assert "| collect wood | " in table and "| teacher − random | +" in table
    assert main(["eval-table", "dev", "other=dev", "--json"]) == 0
    Path("kept.json").write_text(capsys.readouterr().out)
    assert main(["eval-table", "kept.json", "--against", "random"]) == 0
    assert capsys.readouterr().out.count(" − random |") == 3


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--set", "policy_config.max_llm_calls=5"], "policy_config.max_llm_calls"),
        (["--set", "policy.config.max_turns=5"], "policy.config.max_turns"),
        (["--metadata-sql", "select seed from tasks"], "--metadata-sql"),
        (["--max-turns", "5"], "--max-turns"),
    ],
)
def test_nothing_beside_a_suite_changes_what_is_played(words, named, capsys):
    assert main(["eval", "--suite", "crafter-200", "--model", "crafter-random", *words]) == 2
    assert f"leave out {named}" in capsys.readouterr().err


def test_the_suites_are_listed(capsys):
    assert main(["eval", "--suites"]) == 0
    listed = capsys.readouterr().out
    assert "crafter-balrog" in listed and "10,000" in listed and "100 held_out" in listed
    assert main(["eval", "--suites", "--json"]) == 0
    assert [suite["name"] for suite in json.loads(capsys.readouterr().out)][2] == "crafter-200"


def test_what_had_no_effect_is_said_once(models, capsys):
    Path("recipe.toml").write_text(RECIPE.replace("max_tokens = 64", "stop_after_tool_calls = 1"))
    assert main(["eval", "--config", "recipe.toml", "--out", "out", "--max-turns", "2"]) == 0
    assert capsys.readouterr().out.count("policy.config.stop_after_tool_calls") == 1
    assert "policy.config.stop_after_tool_calls" in report_of()["not_applied"]


# --------------------------------------------------------------------------- what goes wrong

HTML = httpx.Response(200, text="<html>Sign in</html>")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda body: httpx.Response(401, json={"error": {"message": "wrong key"}}), "wrong key"),
        (lambda body: httpx.Response(500, text="<html>oops</html>"), "HTTP 500"),
        (lambda body: HTML, "HTML page"),
    ],
    ids=["401", "500", "html"],
)
def test_a_model_that_never_answers_is_one_line(models, capsys, monkeypatch, answer, words):
    monkeypatch.setattr("crafter_pipeline.clients.http.FIRST_WAIT_SECONDS", 0.001)
    models.broken["sick"] = answer
    command = ["eval", "--models", "sick,crafter-random", "--seeds", "0-7", "--max-turns", "2", "--out", "out"]
    assert main([*command, "--concurrency", "1"]) == 3, "a part was played"
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("sick, seeds 0, 1, 2, 3, 4, 5, 6, 7:")]
    assert words in line
    told = report_of()
    assert (
        told["status"] == "partial"
        and len(told["failed"]) == 8
        and [e["label"] for e in told["evaluations"]] == ["random"]
    )
    assert main([*command, "--max-failures", "8"]) == 0
    assert main(["eval", "--model", "sick", "--seeds", "0-7", "--max-turns", "2", "--out", "other"]) == 1, "nothing was"
    assert report_of("other")["evaluations"] == []


def test_seeds_that_failed_are_played_again(models):
    models.broken["crafter-random"] = lambda body: httpx.Response(401, json={})
    command = ["eval", "--model", "crafter-random", "--seeds", "0-3", "--max-turns", "2", "--out", "out"]
    assert main(command) == 1
    models.broken.clear()
    assert main(command) == 0 and report_of()["status"] == "succeeded"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "9-1"], "--seeds 9-1"),
        (["--model", ""], "no model"),
        (["--models", "a=crafter-expert,b=crafter-expert"], "the same model"),
        (["--model", "crafter-random", "--models", "crafter-expert"], "not both"),
        (["--model", "crafter-random", "--metadata", "difficulty"], "key=value"),
        (["--model", "crafter-random", "--metadata", "difficulty=easy"], "tells nothing of its tasks"),
        (["--model", "crafter-random", "--trace-db", "."], "a folder"),
        (["--model", "crafter-random", "--url", URL, "--task-url", "http://b"], "same option"),
        (["--model", "crafter-random", "--set", "env_config.max_env_steps=0"], "max_env_steps"),
    ],
)
def test_wrong_usage_is_a_line_and_two(models, capsys, arguments, words):
    assert main(["eval", "--max-turns", "2", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not Path("evals").exists()


def test_a_recipe_for_a_provider_whose_key_is_missing_plays_nothing(models, capsys, monkeypatch):
    monkeypatch.delenv("TASK_APP_URL")
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    recipe = next(path for path in RECIPES if path.stem == "eval_groq_qwen32b")
    assert main(["eval", "--config", str(recipe)]) == 2
    assert "GROQ_API_KEY" in capsys.readouterr().err and not models.bodies


# --------------------------------------------------------------------------- before anything is played


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_our_recipes_say_offline_what_they_would_play(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("TASK_APP_URL", "CRAFTER_TRACE_DB", "VLLM_BASE_URL", "BACKEND_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(connections, "task_app", None)
    monkeypatch.setattr(connections, "backend", None)
    assert main(["eval", "--config", str(path), "--dry-run", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    hosted = "groq" in path.read_text()
    assert told["players"][0]["served_at"] == (
        "https://api.groq.com/openai" if hosted else "http://127.0.0.1:8000/api/inference/v1"
    )
    assert told["trace_db"] == ("traces/v3/crafter_blog.db" if hosted else None)
    assert list(tmp_path.iterdir()) == []


def test_a_served_model_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLLM_BASE_URL", "http://127.0.0.1:8002/v1")
    recipe = next(path for path in RECIPES if path.stem == "eval_local_vllm")
    assert main(["eval", "--toml", str(recipe), "--model", "mine", "--dry-run", "--json"]) == 0
    (player,) = json.loads(capsys.readouterr().out)["players"]
    assert player == {"label": "mine", "model": "mine", "served_at": "http://127.0.0.1:8002/v1"}


def test_an_empty_option_of_a_script_is_not_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CRAFTER_TRACE_DB", raising=False)
    recipe = next(path for path in RECIPES if path.stem == "eval_groq_qwen32b")
    databases = []
    for value in (None, "mine.db"):
        if value:
            monkeypatch.setenv("CRAFTER_TRACE_DB", value)
        assert main(["eval", "--config", str(recipe), "--trace-db", "", "--dry-run", "--json"]) == 0
        databases.append(json.loads(capsys.readouterr().out)["trace_db"])
    assert databases == ["traces/v3/crafter_blog.db", "mine.db"]


def test_it_is_told_where_each_value_comes_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(RECIPE)
    Path("more.env").write_text("MAX_TURNS=3\n")
    monkeypatch.setenv("TASK_APP_URL", URL)
    monkeypatch.setenv("MAX_TURNS", "")
    command = [
        "eval",
        "--config",
        "recipe.toml",
        "--seeds",
        "5",
        "--env-file",
        "more.env",
        "--explain-config",
        "--json",
    ]
    assert main(command) == 0
    told = {choice["name"]: (choice["value"], choice["from"]) for choice in json.loads(capsys.readouterr().out)}
    assert told["seeds"] == ("5", "--seeds") and told["task_app_url"] == (URL, "TASK_APP_URL")
    assert told["max_turns"] == ("3", "MAX_TURNS in more.env")
    assert told["models"] == ("crafter-expert", "recipe.toml [eval].model")


# --------------------------------------------------------------------------- real processes


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """A real backend, a task app that the command starts, a SIGKILL in the middle."""
    data = ["--data", str(tmp_path / "data")]
    variables = {name: value for name, value in os.environ.items() if name != "TASK_APP_URL"}
    with Service("training backend", "train_app", data, log=tmp_path / "backend.log") as backend:
        variables |= {"BACKEND_BASE_URL": backend.url}
        command = [str(Path(sys.executable).with_name("crafter-pipeline")), "eval"]
        command += ["--models", "crafter-expert,crafter-random"]
        command += ["--seeds", "0-23", "--set", "env_config.max_env_steps=100", "--concurrency", "2", "--out", "out"]
        process = subprocess.Popen(command, cwd=tmp_path, env=variables, stderr=subprocess.DEVNULL)
        rows = tmp_path / "out" / "seeds.jsonl"
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and (not rows.exists() or len(rows.read_text().splitlines()) < 4):
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        before = [json.loads(line) for line in rows.read_text().splitlines() if line.endswith("}")]
        assert 4 <= len(before) < 48
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    assert f"{len(before)} of 48 episodes are there from an earlier call." in done.stderr
    lines = rows.read_text().splitlines()
    assert len({json.loads(line)["run_id"] for line in lines if line.endswith("}")}) == 48
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["status"] == "succeeded" and [len(e["seeds"]) for e in told["evaluations"]] == [24, 24]
    (pair,) = told["comparisons"]
    assert pair["delta"] > 3 and pair["ci95"][0] > 0, "the teacher plays better than chance"
