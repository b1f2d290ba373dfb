"""`train` of the published client: jobs on our backend, followed to their end."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]


def test_sft(client, sft):
    """train --type sft --poll"""
    assert "Final status: succeeded" in sft.output
    job = sft.job
    assert job["fine_tuned_model"] == f"fft:Qwen/Qwen3-4B:{job['id']}" and job["training_type"] == "sft_offline"
    assert job["stand_in"] == "crafter-tiny", "a rehearsal of the recipe, which is said"


def test_sft_tells_its_progress(client, sft):
    """train --type sft --poll shows status, events and losses"""
    if client.version == "0.2.16":
        assert "status=running" in sft.output and "status=succeeded" in sft.output
        return
    for said in ("status=running", "job.created (info)", "sft.job.completed (info)", "timeline=succeeded"):
        assert said in sft.output
    assert "train.loss=" in sft.output and "(step=1)" in sft.output, "its streamer drops what stands at step 0"


RL = """
[algorithm]
type = "online"
method = "policy_gradient"
variety = "gspo"

[services]
task_url = "{task_app}"

[compute]
gpu_type = "H100"
gpu_count = 8

[topology]
type = "single_node_split"
gpus_for_vllm = 4
gpus_for_training = 3
gpus_for_ref = 1
tensor_parallel = 4

[vllm]
tensor_parallel_size = 4
max_model_len = 8192

[reference]
placement = "dedicated"

[model]
{model}
trainer_mode = "full"
label = "crafter-rl-interop"

[rollout]
env_name = "crafter"
policy_name = "crafter-react"
max_turns = 2
episodes_per_batch = 4
max_concurrent_rollouts = 4
batches_per_step = 1
ops = ["agent", "env"]
{rollout}

[evaluation]
instances = 1
every_n_iters = 1
seeds = [900000]

[training]
num_epochs = 1
iterations_per_epoch = 1
max_turns = 2
batch_size = 2
group_size = 2
learning_rate = 5e-5
log_interval = 1
weight_sync_interval = 1
step_rewards_enabled = true
step_rewards_mode = "decision_stepwise"

[training.weight_sync]
enable = true
targets = ["policy"]
weight_sync_interval = 1
"""
SHORT = "policy_config = { use_tools = false, observation = 'sparse', max_tokens = 8 }"


def test_rl_from_a_base(client, train):
    """train --type rl --poll from a base, with the recipe's own prompt"""
    model = 'base = "Qwen/Qwen3-4B"'
    config = client.write(
        "rl.toml", RL.format(task_app=client.services.task_app, model=model, rollout="policy_config = {max_tokens=8}")
    )
    done = train("rl", config)
    assert "Final status: succeeded" in done.output
    assert done.job["fine_tuned_model"] == f"rl:Qwen/Qwen3-4B:{done.job['id']}"
    assert done.job["tags"]["source"] == "train-cli"
    numbers = client.services.numbers(done.job["id"])
    assert numbers["rl.rollouts"] == 4 and numbers["rl.rollouts_failed"] == 0
    assert numbers["rl.prompt_tokens_per_turn"] > 1000, "rules, tool and a map, not the tiny student's short prompt"


def test_rl_from_a_finetuned_model(client, sft, train):
    """train --type rl --poll from an fft: id"""
    source = sft.job["fine_tuned_model"]
    config = client.write(
        "rl_ft.toml", RL.format(task_app=client.services.task_app, model=f'source = "{source}"', rollout=SHORT)
    )
    done = train("rl", config)
    assert "Final status: succeeded" in done.output
    assert (done.job["model"], done.job["base_model"]) == (source, "Qwen/Qwen3-4B")
    assert done.job["fine_tuned_model"] == f"rl:Qwen/Qwen3-4B:{done.job['id']}"


EVAL = """
[eval]
app_id = "grpo-crafter"
model = "{model}"
seeds = [1]
env_name = "crafter"
policy_name = "crafter-react"

[eval.policy_config]
provider = "synth"
model = "{model}"
inference_url = "{backend}/api/inference/v1/chat/completions"
use_tools = false
observation = "sparse"
max_tokens = 8
max_llm_calls = 2
"""


def test_the_model_plays(client, sft):
    """eval of the model that was trained"""
    text = EVAL.format(model=sft.job["fine_tuned_model"], backend=client.services.backend)
    said = client.cli(
        *("eval", "grpo-crafter", "--config", client.write("eval_ft.toml", text), "--url", client.services.task_app),
        *("--env-file", client.env_file(), "--trace-db", client.folder / "eval_ft.db"),
    )
    assert f"Eval complete: 1 ok, 0 failed; model={sft.job['fine_tuned_model']}" in said
