"""`crafter-pipeline traces rescore`: the table, JSON, exit codes."""

from __future__ import annotations

import json

import pytest

from crafter_pipeline.cli import main
from crafter_pipeline.contracts import Reply, Rollout, StopReason, Turn
from crafter_pipeline.traces.store import TraceStore


def rollout(run_id="run-a", reward=1.0, gains=True):
    info = {"gains": {"inventory": {"wood": 1}, "achievements": {"collect_wood": 1}}} if gains else {}
    messages = ({"role": "user", "content": "tree"},)
    turn = Turn(0, messages, Reply("do"), ("do",), None, reward, ("collect_wood",), 1.0, 2.0, info=info)
    return Rollout(
        run_id=run_id,
        environment="crafter",
        seed=7,
        policy="crafter-react",
        model="crafter-expert",
        provider="custom",
        turns=(turn,),
        achievements=("collect_wood",),
        total_reward=reward,
        env_steps=1,
        stop_reason=StopReason.TURN_LIMIT,
        created_at=1.0,
        metadata={"policy_config": {}},
    )


@pytest.fixture
def store(tmp_path):
    def add(*rollouts):
        with TraceStore(tmp_path / "traces.db") as traces:
            for one in rollouts:
                traces.add(one)
        return str(tmp_path / "traces.db")

    return add


def test_the_table_has_a_row_per_rollout_and_the_sum(store, capsys):
    path = store(rollout(), rollout("run-b"))
    assert main(["traces", "rescore", "--in", path, "--set", "indicator_lambda=3"]) == 0
    shown = capsys.readouterr().out
    assert "run-a" in shown and "run-b" in shown and "+4.00" in shown
    assert "2 of 2 rollouts have the rewards that their own shaping gives" in shown


def test_json_and_the_file_say_the_same(store, tmp_path, capsys):
    path, rewards, out = store(rollout()), tmp_path / "rewards.toml", tmp_path / "out" / "rescored.json"
    rewards.write_text('[step_rewards]\nstrategy = "per_achievement"\n')
    words = ["--in", path, "--rewards", str(rewards), "--set", "weights.collect_wood=2", "--out", str(out), "--json"]
    assert main(["traces", "rescore", *words]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads(out.read_text())
    assert result["rollouts"][0]["new_return"] == pytest.approx(2.18)
    assert result["totals"]["difference"] == pytest.approx(1.18)


def test_the_database_is_not_changed(store, tmp_path):
    path = store(rollout())
    before = (tmp_path / "traces.db").read_bytes()
    assert main(["traces", "rescore", "--in", path]) == 0
    assert (tmp_path / "traces.db").read_bytes() == before


def test_stored_rewards_that_are_wrong_give_exit_code_1(store, capsys):
    assert main(["traces", "rescore", "--in", store(rollout(reward=5.0), rollout("run-b"))]) == 1
    shown = capsys.readouterr().out
    assert "1 of 2 rollouts" in shown and "run-a: turn 0 is stored with 5" in shown


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--set", "strategy=per_achivement"], 2, "did you mean 'per_achievement'?"),
        (["--set", "lamda=2"], 2, "lamda"),
        (["--set", "strategy"], 2, "key=value"),
        (["--rewards", "missing.toml"], 2, "no such config file"),
    ],
)
def test_a_wrong_shaping_is_one_line(store, capsys, words, code, says):
    assert main(["traces", "rescore", "--in", store(rollout()), *words]) == code
    assert says in capsys.readouterr().err


def test_missing_databases_and_missing_facts_are_data_errors(store, tmp_path, capsys):
    assert main(["traces", "rescore", "--in", str(tmp_path / "no.db")]) == 1
    path = store(rollout(gains=False))
    assert main(["traces", "rescore", "--in", path, "--set", "strategy=per_achievement"]) == 1
    assert "turn 0 has no gains" in capsys.readouterr().err
