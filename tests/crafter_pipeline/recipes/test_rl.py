"""Recipes of reinforcement learning: what they may say, and the job that comes of it."""

from __future__ import annotations

import tomllib

import pytest

from crafter_pipeline.config import RlConfig
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.recipes.rl import RlRecipe
from crafter_pipeline.recipes.train import RlPlan
from train_app.specs import read_rl

TASK = "http://task-app:8001"
BACKEND = "http://backend:8000"
FULL = """
[algorithm]
type = "online"
method = "policy_gradient"
variety = "gspo"
[services]
task_url = "http://elsewhere"
[compute]
gpu_type = "H100"
gpu_count = 8
[model]
base = "Qwen/Qwen3-4B"
trainer_mode = "full"
label = "crafter-rl-from-base"
[rollout]
env_name = "crafter"
max_turns = 10
episodes_per_batch = 64
policy_name = "crafter-react"
max_concurrent_rollouts = 8
[training]
num_epochs = 1
iterations_per_epoch = 10
max_turns = 10
batch_size = 16
group_size = 4
learning_rate = 5e-5
log_interval = 1
weight_sync_interval = 1
[training.weight_sync]
enable = true
targets = ["policy"]
weight_sync_interval = 1
[tags]
team = "x"
"""
SPARSE = 'type = "rl"\n[model]\nsource = "latest:sft"\n[rollout]\nmax_turns = 5\nepisodes_per_batch = 64\n'


def plan(text: str, **given: str) -> RlPlan:
    return RlPlan.of(tomllib.loads(text), "r.toml", **given)


def body(text: str, url: str = TASK, **given: str) -> dict:
    return plan(text, **given).body(url, BACKEND)


def test_the_body_is_the_published_clients():
    toml = tomllib.loads(FULL)
    config = {
        **toml,
        "services": {"task_url": TASK},
        "compute": {"gpu_type": "H100", "gpu_count": 8, "topology": {"reference_placement": "none"}},
        "reference": {"placement": "none"},
    }
    config["training"]["weight_sync"] |= {"mode": "direct", "interval": 1}
    assert body(FULL, f"{TASK}/") == {
        "job_type": "rl",
        "compute": config["compute"],
        "data": {"endpoint_base_url": TASK, "config": config, "base_model": "Qwen/Qwen3-4B"},
        "tags": {"source": "crafter-pipeline", "team": "x"},
        "metadata": {"backend_base_url": f"{BACKEND}/api"},
    }


def test_what_a_sparse_recipe_leaves_out_is_filled():
    sent = body(f"{SPARSE}[evaluation]\ninstances = 3\n")
    config = sent["data"]["config"]
    assert sent["data"]["model"] == "latest:sft" and "base_model" not in sent["data"]
    assert config["model"] == {"source": "latest:sft", "trainer_mode": "full", "label": "crafter-rl"}
    assert config["training"]["batch_size"] * config["training"]["group_size"] == 64
    assert config["rollout"]["env_name"] == "crafter" and config["training"]["max_turns"] == 5
    assert config["evaluation"]["seeds"] == [900_000, 900_001, 900_002]
    read = read_rl(sent)
    assert (read["config"].ratio, read["config"].learning_rate, read["max_turns"]) == ("sequence", 5e-5, 5)
    assert not read["not_applied"]


def test_our_words_win_and_the_wires_words_say_the_same():
    ours = (
        "[training]\niterations = 2\ngroups_per_iteration = 3\ngroup_size = 2\nconcurrency = 5\ntrain_kind = 'lora'\n"
    )
    sent = body(FULL.partition("[training]")[0] + ours + "iterations_per_epoch = 10\nadvantage = 'return_to_go'\n")
    config, training = sent["data"]["config"], sent["data"]["config"]["training"]
    assert (training["iterations_per_epoch"], training["batch_size"]) == (2, 3)
    assert (config["rollout"]["episodes_per_batch"], config["rollout"]["max_concurrent_rollouts"]) == (6, 5)
    assert (config["model"]["trainer_mode"], config["algorithm"]["variety"]) == ("lora", "dapo")
    read = read_rl(sent)["config"]
    assert (read.iterations, read.groups_per_iteration, read.group_size, read.train_kind) == (2, 3, 2, "lora")


def test_a_policy_stands_in_for_the_model():
    sent = body('[policy]\nmodel_name = "Qwen/Qwen3-4B"\ntrainer_mode = "lora"\nlabel = "mine"\ntemperature = 0.6\n')
    assert sent["data"]["base_model"] == "Qwen/Qwen3-4B"
    assert sent["data"]["config"]["model"] == {"base": "Qwen/Qwen3-4B", "trainer_mode": "lora", "label": "mine"}
    assert read_rl(sent)["config"].temperature == 0.6


def test_another_model_replaces_every_word_about_the_first():
    math = '[model]\nbase = "Qwen/Qwen3-4B"\n[policy]\nmodel = "Qwen/Qwen3-4B"\nmax_tokens = 64\n'
    assert body(math)["data"]["base_model"] == "Qwen/Qwen3-4B"
    sent = body(math, model="ft:job_1")
    assert sent["data"]["model"] == "ft:job_1" and "Qwen3-4B" not in str(sent)
    assert body(SPARSE, model="Qwen/Qwen3-0.6B")["data"]["base_model"] == "Qwen/Qwen3-0.6B"
    assert body('[services]\ntask_url = "x"', model="latest:rl")["data"]["model"] == "latest:rl"


def test_several_task_apps_share_the_rollouts():
    sent = body(SPARSE, "http://a:1, http://b:2/")
    assert sent["data"]["endpoint_base_url"] == sent["data"]["config"]["services"]["task_url"] == "http://a:1"
    assert read_rl(sent)["config"].task_app_urls == ("http://b:2",)


def test_a_math_recipe_is_played_as_math():
    text = '[model]\nbase = "m"\n[rollout]\npolicy_name = "math-single-step"\n[data]\nseed_start = 7\nsplit = "train"\n'
    sent = body(f"{text}evaluation_episodes = 4\nevaluation_split = 'validation'\n[training]\nreward_positive = 2.0\n")
    assert sent["data"]["config"]["rollout"]["env_name"] == "math"
    read = read_rl(sent)
    assert (read["environment"], read["max_turns"], read["config"].seeds_start) == ("math", 1, 7)
    assert read["config"].dev.seeds == (900_000, 900_001, 900_002, 900_003)
    assert list(read["not_applied"]) == ["training.reward_positive"], "its rewards are the task app's own"


def test_every_field_of_the_trainer_is_a_key_of_training():
    model = RlRecipe.model_fields["training"].annotation
    assert RlConfig.model_fields.keys() - model.model_fields.keys() == {"compute"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[rollout]\nmax_turns = 1", "no model to start from. Set [model].source"),
        ('[model]\nsource = "latest:sft"\nbase = "m"', "it has model.source = 'latest:sft' and model.base = 'm'"),
        ('[model]\nbase = "m"\n[policy]\nmodel = "n"', "it has model.base = 'm' and policy.model = 'n'"),
        ('[model]\nbase = "m"\n[training]\ngroup_sise = 4', "did you mean 'group_size'?"),
        ('[model]\nbase = "m"\n[training]\nclip_hi = 0.3', "did you mean 'clip_high'?"),
        ('[model]\nbase = "m"\n[training.weight_sync]\nenabel = true', "did you mean 'enable'?"),
        ('[model]\nbase = "m"\n[judge.options]\nprovidr = "x"', "did you mean 'provider'?"),
        ('[model]\nsource = "fft:REPLACE-WITH-SFT-JOB-ID"', "model.source is still the placeholder"),
        ('[model]\nbase = "m"\n[services]\ntask_url = "https://YOUR-TASK-APP.modal.run"', "services.task_url is still"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(text, words):
    with pytest.raises(ConfigError, match="r.toml") as said:
        body(text)
    assert words in str(said.value)


def test_a_placeholder_that_was_replaced_is_none():
    text = '[model]\nsource = "fft:REPLACE-WITH-SFT-JOB-ID"\n[services]\ntask_url = "https://YOUR-TASK-APP.modal.run"'
    assert body(text, model="latest:sft", task_app_url=TASK)["data"]["model"] == "latest:sft"
