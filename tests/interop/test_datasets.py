"""The published exporter and filter on databases of ours, and what is trained on their files."""

from __future__ import annotations

import json

import pytest

from crafter_pipeline.contracts import Reply

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

CALL = {"id": "c1", "type": "function", "function": {"name": "interact_many", "arguments": '{"actions":["do"]}'}}


@pytest.fixture
def path(make_db, make_rollout, make_turn):
    """`one` unlocked an achievement in its second turn, `two` unlocked two at once."""
    answer = Reply("", "a thought", (CALL,), "tool_calls")

    def rollout(run_id, *unlocked):
        turns = (make_turn(0, reply=answer), make_turn(1, reply=answer, reward=len(unlocked), unlocked=unlocked))
        return make_rollout(run_id, turns=turns, achievements=unlocked, total_reward=float(len(unlocked)))

    return make_db([rollout("one", "collect_wood"), rollout("two", "collect_wood", "place_table")])


@pytest.mark.parametrize(
    ("flags", "sessions"),
    [
        pytest.param((), {"one", "two"}, id="all"),
        pytest.param(("--min-unique", 1), {"one", "two"}, id="--min-unique 1"),
        pytest.param(("--min-unique", 2), {"two"}, id="--min-unique 2"),
        pytest.param(("--require-achievement", "place_table"), {"two"}, id="--require-achievement"),
        pytest.param(("--max-outcome-reward", 1), {"one"}, id="--max-outcome-reward"),
        pytest.param(("--event-reward", "unique_achievement_delta:2"), {"two"}, id="--event-reward"),
        pytest.param(("--model", "crafter-expert", "--provider", "custom"), {"one", "two"}, id="--model --provider"),
    ],
)
def test_the_exporter_selects_and_writes(client, path, tmp_path, flags, sessions):
    """export_trace_sft.py on our trace DB"""
    out = tmp_path / "out.jsonl"
    done = client.module("examples.warming_up_to_rl.export_trace_sft", "--in", path, "--out", out, *flags)
    assert f"Wrote {2 * len(sessions)} examples from {len(sessions)} session(s)" in done.stderr, done
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert {record["metadata"]["session_id"] for record in records} == sessions
    assert [m["role"] for m in records[0]["messages"]] == ["system", "user", "assistant"]
    function = records[0]["messages"][-1]["tool_calls"][0]["function"]
    assert function["name"] == "interact_many" and json.loads(function["arguments"]) == {"actions": ["do"]}
    assert records[1]["metadata"]["achievements"]["new_unique"][0] == "collect_wood"


@pytest.mark.parametrize(
    ("rule", "examples"),
    [
        pytest.param("", 4, id="all"),
        pytest.param("min_official_score = 2", 2, id="min_official_score"),
        pytest.param('models = ["crafter-expert"]\nlimit = 3', 3, id="models, limit"),
    ],
)
def test_the_filter_selects_and_writes(client, path, tmp_path, rule, examples):
    """filter on our trace DB"""
    out = tmp_path / "out.jsonl"
    config = client.write("filter.toml", f'[filter]\ndb = "{path}"\noutput = "{out}"\n{rule}\n')
    assert f"Wrote {examples} examples" in client.cli("filter", "--config", config)
    record = json.loads(out.read_text().splitlines()[0])
    assert record["messages"][0]["role"] == "user" and record["messages"][0]["content"].startswith("tree east")
    assert record["messages"][1]["content"][0]["arguments"] == {"actions": ["do"]}


def test_what_the_filter_wrote_is_trained(client, path, train):
    """filter → train --type sft --poll: our backend trains what the filter wrote"""
    out = client.folder / "filtered.jsonl"
    config = client.write("filter.toml", f'[filter]\ndb = "{path}"\noutput = "{out}"\n')
    client.cli("filter", "--config", config)
    done = train("sft", client.write("sft.toml", SFT), "--dataset", out)
    assert done.job["status"] == "succeeded", done.job["error"]
    assert "4 rows, " in done.output if client.version == "0.2.17" else "Final status: succeeded" in done.output


SFT = """
[algorithm]
type = "offline"
method = "sft"
variety = "fft"

[job]
model = "Qwen/Qwen3-0.6B"

[compute]
gpu_type = "H100"
gpu_count = 1

[training]
mode = "sft_offline"

[hyperparameters]
n_epochs = 1
batch_size = 4
sequence_length = 1024
train_kind = "fft"
"""
