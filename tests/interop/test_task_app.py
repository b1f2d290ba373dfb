"""The published client against our task app."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]


def test_validate(client):
    """task-app validate grpo-crafter --url"""
    said = client.cli(
        *("task-app", "validate", "grpo-crafter", "--url", client.services.task_app, "--min-instances", 3),
        *("--api-key", "environment-key-of-the-tests"),
    )
    assert "All validations passed!" in said
    assert "API key provided and accepted" in said and "task instances (≥ 3 required)" in said


def test_info(client):
    """task-app info --base --seed"""
    said = client.cli(
        *("task-app", "info", "--base", client.services.task_app, "--seed", 7),
        *("--api-key", "environment-key-of-the-tests"),
    )
    told = json.loads(said[said.index("{") :])
    assert told["task"]["id"] == "crafter_classic" and told["dataset"]["seed"] == 7
    assert len(told["action_space"]["actions"]) == 17


EVAL = """
[eval]
app_id = "grpo-crafter"
task_app_url = "https://nobody.example"
model = "crafter-expert"
seeds = [0, 1, 2]
max_turns = 6
concurrency = 2
env_name = "crafter"
policy_name = "crafter-react"
trace_format = "full"
return_trace = true

[eval.env_config]
env_params = {{ max_steps_per_episode = 6 }}

[eval.policy_config]
provider = "synth"
model = "crafter-expert"
inference_url = "{backend}/v1"
temperature = 0.6
max_tokens = 512
use_vision = false
max_llm_calls = 6
"""


@pytest.fixture(scope="module")
def evaluated(client):
    """What `eval` printed, and the database that it wrote."""
    config, db = client.write("eval.toml", EVAL.format(backend=client.services.backend)), client.folder / "eval.db"
    said = client.cli(
        *("eval", "grpo-crafter", "--config", config, "--url", client.services.task_app),
        *("--env-file", client.env_file(), "--trace-db", db),
    )
    return said, db


def test_eval_plays_every_seed(client, evaluated):
    """eval --config --url (eval mode)"""
    said, _ = evaluated
    assert "Eval complete: 3 ok, 0 failed; model=crafter-expert, split=train" in said
    for seed in range(3):
        assert f"seed={seed} status=200 " in said, "its line leaves out a return of 0"


def test_eval_keeps_the_traces_that_we_answer(client, evaluated):
    """eval --trace-db stores our traces whole"""
    _, path = evaluated
    with closing(sqlite3.connect(path)) as db:
        kept = db.execute(
            "SELECT json_extract(metadata, '$.eval_seed'), num_timesteps, num_events, num_messages, "
            "json_extract(metadata, '$.official_score') FROM session_traces ORDER BY 1"
        ).fetchall()
    assert [row[:4] for row in kept] == [(seed, 6, 12, 18) for seed in range(3)]
    (ours,) = client.services.rows(
        "SELECT SUM(MIN(total_reward, 1.0)) FROM (SELECT total_reward FROM outcome_rewards o JOIN session_traces s "
        "USING (session_id) WHERE json_extract(s.metadata, '$.model') = 'crafter-expert' AND o.total_steps = 6 "
        "GROUP BY json_extract(s.metadata, '$.seed'))"
    )
    assert sum(row[4] for row in kept) == ours[0] > 0, "the expert unlocks something in 6 steps of these seeds"


RUN_EVAL = """
task_app_url = "{task_app}"
model = "crafter-expert"
num_episodes = 2
max_turns = 3
concurrency = 2
inference_url = "{backend}"

[rollout]
env_name = "crafter"
policy_name = "crafter-react"
max_turns = 3

[rollout.policy_config]
max_llm_calls = 3
"""


def test_run_eval_by_rollouts(client):
    """run_eval.py --toml --use-rollout"""
    addresses = {"task_app": client.services.task_app, "backend": client.services.backend}
    config = client.write("run_eval.toml", RUN_EVAL.format(**addresses))
    done = client.module("examples.warming_up_to_rl.run_eval", "--toml", config, "--use-rollout")
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout[done.stdout.index("{") :])
    assert [(e["seed"], e["turns"]) for e in told["episodes"]] == [(1, 3), (2, 3)]
    assert told["aggregate"]["completed"] == 2 and not any("error" in e for e in told["episodes"])


def test_traced_rollout_goes_to_groq_whatever_it_is_told(client):
    """run_local_rollout_traced.py, which ignores --model and --inference-url: our task app is asked to call Groq"""
    done = client.module(
        "examples.warming_up_to_rl.run_local_rollout_traced",
        *("--base-url", client.services.task_app, "--api-key", "environment-key-of-the-tests"),
        *("--inference-api-key", "none", "--model", "crafter-expert", "--inference-url", client.services.backend),
        *("--max-llm-calls", 2, "--run-id", "local-trace", "--timeout", 120),
    )
    assert "crafter_classic_procedural" in done.stdout and "Requesting rollout" in done.stdout
    assert done.returncode == 1 and "502 Bad Gateway" in done.stderr, "no network: Groq cannot be reached from here"
    ((why,),) = client.services.rows("SELECT DISTINCT error FROM rollout_attempts WHERE run_id = 'local-trace'")
    assert "api.groq.com" in why
