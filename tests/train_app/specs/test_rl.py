"""The payload of a reinforcement-learning job: ours survives the wire, published ones are applied or recorded."""

from __future__ import annotations

import tomllib

import pytest

from crafter_pipeline.clients.payloads import rl_payload
from crafter_pipeline.config import (
    CurriculumConfig,
    DevSeeds,
    JudgeConfig,
    PolicyConfig,
    RewardBlend,
    RlConfig,
    TrainingConfig,
)
from crafter_pipeline.errors import ConfigError
from train_app.specs import RlSpec, read_rl

COMMON = dict(
    iterations=3,
    groups_per_iteration=5,
    group_size=6,
    seeds_start=123,
    max_env_steps=77,
    env_config={"level": "medium"},
    task_app_urls=("http://t:2", "http://t:3/path?cid=x"),
    learning_rate=1e-5,
    warmup_ratio=0.25,
    scale="group",
    gamma=0.9,
    loss="grpo",
    ratio="sequence",
    advantage="episode",
    weigh="episodes",
    minibatches=2,
    clip_low=0.1,
    clip_high=0.3,
    clip_cap=4.0,
    kl=0.01,
    max_staleness=1,
    max_samples=99,
    temperature=0.8,
    concurrency=9,
    checkpoint_every=2,
    dev=DevSeeds(every=3, seeds=(900_001, 900_005), temperature=0.5),
    keep="best",
    entropy_floor=0.2,
    stop_on_alarm=True,
    record_samples=False,
    trace_rollouts=True,
    step_rewards={"enabled": True, "mode": "decision_stepwise"},
    judge=JudgeConfig(
        model="judge-1",
        inference_url="http://judge.test/v1",
        rubric={"outcome": [{"id": "skill"}]},
        reward_blend=RewardBlend(env=0.5, outcome=0.25),
        on_failure="env_only",
        concurrency=2,
        timeout_seconds=9,
    ),
    train_kind="lora",
    lora_rank=4,
    lora_alpha=8,
    lora_dropout=0.1,
    lora_target_modules=("q_proj", "v_proj"),
    weight_decay=0.2,
    max_grad_norm=0.5,
    seed=4,
    device="cpu",
    dtype="fp32",
    gradient_checkpointing=True,
    gpus=2,
    report_to=("mlflow",),
    price_per_hour=1.5,
)
EVERY_VALUE = (
    COMMON | {"seeds": (5, 3)},
    COMMON
    | {"curriculum": CurriculumConfig(seeds=7, starts=({}, {"start": "thirsty"}), success_return=2.0, explore=0.1)},
    COMMON
    | {"advantage": "distillation", "teacher": "latest:sft", "teacher_url": "http://x/v1", "temperature": 1.0}
    | {"ratio": "token", "loss": "dr_grpo", "group_size": 1, "train_kind": "qlora"},
)


def wire_rl(**tables):
    return {
        "job_type": "rl",
        "data": {
            "endpoint_base_url": "http://task:8001/",
            "config": {"model": {"base": "Qwen/Qwen3-0.6B"}, "rollout": {}, "training": {}, **tables},
        },
    }


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr("train_app.specs.base.has_gpu", lambda: False)


@pytest.mark.parametrize("config", [RlConfig(), *(RlConfig(**values) for values in EVERY_VALUE)])
@pytest.mark.parametrize("source", ["crafter-tiny", "fft:crafter-tiny:job_0123456789abcdef"])
def test_an_rl_job_survives_the_wire(config, source):
    policy = PolicyConfig(history=5, max_tokens=33, max_actions_per_turn=2)
    payload = rl_payload(
        config, task_app_url="http://t:1", source=source, environment="crafter", policy=policy, tags={"a": "b"}
    )
    values = read_rl(payload)
    assert values["config"] == config
    assert (values["task_app_url"], values["source"], values["environment"]) == ("http://t:1", source, "crafter")
    assert PolicyConfig(**values["policy"]) == policy
    assert values["tags"] == {"source": "crafter-pipeline", "a": "b"}
    assert values["not_applied"] == {}


def test_every_field_of_the_config_is_among_those_that_survive():
    covered = set().union(*EVERY_VALUE)
    fields = {name: field for name, field in RlConfig.model_fields.items() if name != "compute"}  # for hosted backends
    assert covered == set(fields), "a new field needs a value above"
    for name, field in fields.items():
        assert any(values.get(name, field.default) != field.default for values in EVERY_VALUE), name
    assert set(TrainingConfig.model_fields) < covered


def test_a_spec_survives_the_table():
    rl = RlSpec(**read_rl(wire_rl(tags={"a": 1})))
    assert RlSpec.model_validate_json(rl.model_dump_json()) == rl


# --------------------------------------------------------------------------- published keys

FULL = wire_rl()["data"]["config"]["model"]


@pytest.mark.parametrize(
    ("tables", "applied"),
    [
        ({"algorithm": {"variety": "gspo"}}, {"ratio": "sequence", "loss": "grpo"}),
        ({"algorithm": {"variety": "grpo"}}, {"ratio": "token", "loss": "grpo"}),
        ({"algorithm": {"variety": "DAPO"}}, {"loss": "dapo"}),
        ({"algorithm": {"variety": "dr_grpo"}}, {"loss": "dr_grpo", "scale": "none"}),
        ({"model": FULL | {"trainer_mode": "full"}}, {"train_kind": "fft"}),
        ({"model": FULL | {"trainer_mode": "lora"}}, {"train_kind": "lora"}),
        ({"model": FULL | {"trainer_mode": "qlora"}}, {"train_kind": "qlora"}),
        (
            {
                "model": FULL | {"trainer_mode": "lora"},
                "lora": {"r": 8, "alpha": 9, "dropout": 0.2, "target_modules": ["q_proj"]},
            },
            {"lora_rank": 8, "lora_alpha": 9, "lora_dropout": 0.2, "lora_target_modules": ("q_proj",)},
        ),
        (
            {
                "model": FULL | {"trainer_mode": "lora"},
                "lora": {"rank": 8},
                "training": {"lora": {"r": 2, "target_modules": "all-linear"}},
            },
            {"lora_rank": 2, "lora_target_modules": ()},
        ),
        ({"training": {"iterations_per_epoch": 10, "num_epochs": 2}}, {"iterations": 20}),
        ({"training": {"batch_size": 16, "group_size": 4}}, {"groups_per_iteration": 16, "group_size": 4}),
        (
            {"training": {"group_size": 4}, "rollout": {"episodes_per_batch": 30, "batches_per_step": 2}},
            {"groups_per_iteration": 15},
        ),
        ({"rollout": {"max_concurrent_rollouts": 8}}, {"concurrency": 8}),
        ({"rollout": {"max_concurrent_rollouts": 8}, "training": {"async_semaphore_max": 4}}, {"concurrency": 4}),
        ({"rollout": {"max_concurrent_rollouts": 9999}}, {"concurrency": 512}),
        ({"rollout": {"max_turns": 10, "policy_config": {"max_actions_per_turn": 2}}}, {"max_env_steps": 20}),
        ({"training": {"max_turns": 10}}, {"max_env_steps": 10}),
        ({"rollout": {"env_config": {"env_params": {"max_steps_per_episode": 30}}}}, {"max_env_steps": 30}),
        ({"rollout": {"env_config": {"difficulty": "easy"}}}, {"env_config": {"difficulty": "easy"}}),
        ({"training": {"learning_rate": 5e-5}}, {"learning_rate": 5e-5}),
        ({"rollout": {"policy_config": {"temperature": 0.7}}}, {"temperature": 0.7}),
        ({"policy": {"temperature": 0.6}}, {"temperature": 0.6}),
        ({"data": {"seeds": [3, 4]}}, {"seeds": (3, 4)}),
        (
            {"evaluation": {"instances": 2, "every_n_iters": 5, "seeds": [0, 1, 2]}},
            {"dev": DevSeeds(every=5, seeds=(0, 1))},
        ),
        ({"evaluation": {"instances": 3, "seeds": []}}, {"dev": DevSeeds(seeds=(900_000, 900_001, 900_002))}),
        (
            {"training": {"step_rewards_enabled": True, "step_rewards_mode": "decision_stepwise"}},
            {"step_rewards": {"enabled": True, "mode": "decision_stepwise"}},
        ),
        (
            {"training": {"rewards": {"step_rewards_enabled": True, "step_rewards_beta": 0.5}}},
            {"step_rewards": {"enabled": True, "beta": 0.5}},
        ),
    ],
)
def test_a_published_key_is_applied(tables, applied):
    values = read_rl(wire_rl(**tables))
    assert {name: getattr(values["config"], name) for name in applied} == applied
    assert values["not_applied"] == {}


@pytest.mark.parametrize(
    ("tables", "applied"),
    [
        ({"rollout": {"env_name": "CrafterClassic", "policy_name": "react"}}, {"environment": "crafter"}),
        ({"rollout": {"policy_name": "crafter-react"}}, {"policy_name": "crafter-react"}),
        ({"rollout": {"policy_config": {"use_tools": True, "model": "y"}}}, {"policy": {"use_tools": True}}),
        ({"policy": {"max_tokens": 512}}, {"policy": {"max_tokens": 512}}),
        ({"training": {"max_completion_tokens": 256}}, {"policy": {"max_tokens": 256}}),
        ({"rollout": {"max_turns": 10}}, {"max_turns": 10}),
        ({"tags": {"team": "x"}}, {"tags": {"team": "x"}}),
        ({"smoke": {"max_steps": 1}, "type": "rl"}, {}),
        ({"reference": {"placement": "none"}, "topology": {"reference_placement": "none", "gpus_for_ref": 0}}, {}),
        ({"training": {"log_interval": 1, "weight_sync_interval": 1, "event_rewards_kind": "unique"}}, {}),
        ({"training": {"weight_sync": {"enable": True, "targets": ["policy"], "weight_sync_interval": 1}}}, {}),
        ({"training": {"weight_sync": {"enable": True, "mode": "direct", "interval": 1}}}, {}),
        ({"model": FULL | {"supports_vision": False, "label": "x"}}, {}),
    ],
)
def test_a_published_key_beyond_the_training_is_applied(tables, applied):
    values = read_rl(wire_rl(**tables))
    assert {name: values[name] for name in applied} == applied
    assert values["not_applied"] == {}


@pytest.mark.parametrize(
    ("tables", "key", "reason"),
    [
        ({"algorithm": {"type": "offline"}}, "algorithm.type", "online"),
        ({"algorithm": {"method": "dpo"}}, "algorithm.method", "policy gradients"),
        ({"algorithm": {"variety": "ppo"}}, "algorithm.variety", "gspo"),
        ({"algorithm": {"variety": "gspo"}, "training": {"loss": "dapo"}}, "algorithm.variety", "training.loss"),
        ({"services": {"judge_url": "http://j"}}, "services.judge_url", "itself"),
        ({"compute": {"gpu_type": "H100"}}, "compute.gpu_type", "GPU"),
        ({"compute": {"nodes": 2}}, "compute.nodes", "machine"),
        ({"topology": {"type": "single_node_split"}}, "topology.type", "one GPU"),
        ({"topology": {"gpus_for_vllm": 4}}, "topology.gpus_for_vllm", "one GPU"),
        ({"topology": {"gpus_for_training": 3}}, "topology.gpus_for_training", "one GPU"),
        ({"topology": {"gpus_for_ref": 1}}, "topology.gpus_for_ref", "one GPU"),
        ({"topology": {"tensor_parallel": 4}}, "topology.tensor_parallel", "one GPU"),
        ({"topology": {"reference_placement": "dedicated"}}, "topology.reference_placement", "one GPU"),
        ({"vllm": {"tensor_parallel_size": 4}}, "vllm.tensor_parallel_size", "sampler"),
        ({"vllm": {"max_model_len": 8192}}, "vllm.max_model_len", "sampler"),
        ({"vllm": {"limit_mm_per_prompt": {"image": 1}}}, "vllm.limit_mm_per_prompt", "sampler"),
        ({"reference": {"placement": "dedicated"}}, "reference.placement", "training.kl"),
        ({"reference": {"port": 8002}}, "reference.port", "training.kl"),
        ({"reference": {"tp": 1}}, "reference.tp", "training.kl"),
        ({"reference": {"health_max_wait_s": 180}}, "reference.health_max_wait_s", "training.kl"),
        ({"reference": {"health_interval_ms": 300}}, "reference.health_interval_ms", "training.kl"),
        ({"model": FULL | {"supports_vision": True}}, "model.supports_vision", "text"),
        ({"model": FULL | {"trainer_mode": "sft"}}, "model.trainer_mode", "lora"),
        ({"model": FULL | {"trainer_mode": "full"}, "lora": {"r": 8}}, "lora", "trainer_mode"),
        ({"training": {"lora": {"r": 8}}}, "training.lora", "trainer_mode"),
        ({"policy": {"top_p": 0.95}}, "policy.top_p", "whole distribution"),
        ({"policy": {"top_k": 20}}, "policy.top_k", "whole distribution"),
        ({"policy": {"repetition_penalty": 1.1}}, "policy.repetition_penalty", "whole distribution"),
        ({"policy": {"stop_sequences": ["x"]}}, "policy.stop_sequences", "max_tokens"),
        ({"policy": {"inference_url": "http://x"}}, "policy.inference_url", "its own policy"),
        ({"rollout": {"policy_config": {"top_p": 0.9}}}, "rollout.policy_config.top_p", "whole distribution"),
        ({"rollout": {"policy_config": {"temperature": 0}}}, "rollout.policy_config.temperature", "chance"),
        ({"rollout": {"ops": ["agent", "env"]}}, "rollout.ops", "alternates"),
        ({"rollout": {"rubric_rewards_only": True}}, "rollout.rubric_rewards_only", "reward_blend"),
        ({"rollout": {"task_app_origin_rewards_only": True}}, "rollout.task_app_origin_rewards_only", "reward_blend"),
        ({"training": {"gradient_accumulation_steps": 4}}, "training.gradient_accumulation_steps", "minibatches"),
        ({"training": {"max_accumulated_minibatch": 4}}, "training.max_accumulated_minibatch", "minibatches"),
        ({"training": {"log_interval": 5}}, "training.log_interval", "every iteration"),
        ({"training": {"weight_sync_interval": 2}}, "training.weight_sync_interval", "before every batch"),
        ({"training": {"weight_sync": {"enable": False}}}, "training.weight_sync.enable", "before every batch"),
        ({"training": {"weight_sync": {"targets": ["ref"]}}}, "training.weight_sync.targets", "before every batch"),
        ({"training": {"weight_sync": {"mode": "disk"}}}, "training.weight_sync.mode", "before every batch"),
        ({"training": {"weight_sync": {"verify_every_k": 2}}}, "training.weight_sync.verify_every_k", "every batch"),
        ({"training": {"event_rewards_kind": "absolute"}}, "training.event_rewards_kind", "once"),
        ({"training": {"rewards": {"bonus": 2}}}, "training.rewards.bonus", "step_rewards"),
        ({"training": {"group_size": 1}}, "training.group_size", "raised to 2"),
        ({"training": {"nonsense": 1}}, "training.nonsense", "unknown"),
        ({"model": FULL | {"nonsense": 1}}, "model.nonsense", "unknown"),
        ({"evaluation": {"nonsense": 1}}, "evaluation.nonsense", "unknown"),
        ({"data": {"nonsense": 1}}, "data.nonsense", "unknown"),
        ({"nonsense": {"x": 1}}, "nonsense", "unknown"),
    ],
)
def test_a_published_key_without_effect_is_recorded_with_the_reason(tables, key, reason):
    notes = read_rl(wire_rl(**tables))["not_applied"]
    assert list(notes) == [key] and reason in notes[key]


PUBLISHED = """
type = "rl"

[algorithm]
type = "online"
method = "policy_gradient"
variety = "gspo"

[services]
task_url = "https://an-app.modal.run"
judge_url = "https://a-backend.example/api"

[compute]
gpu_type = "H200"
gpu_count = 2
[compute.topology]
reference_placement = "none"

[topology]
type = "single_node_split"
gpus_for_vllm = 1
gpus_for_training = 1
gpus_for_ref = 0
tensor_parallel = 1
reference_placement = "none"

[vllm]
tensor_parallel_size = 1
max_model_len = 8192

[reference]
placement = "none"

[model]
base = "Qwen/Qwen3-4B"
trainer_mode = "lora"
label = "crafter-rl"

[rollout]
env_name = "crafter"
policy_name = "crafter-react"
max_turns = 10
episodes_per_batch = 20
max_concurrent_rollouts = 8
batches_per_step = 2
ops = ["agent", "env"]

[evaluation]
instances = 10
every_n_iters = 20
seeds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

[training]
num_epochs = 1
iterations_per_epoch = 10
max_turns = 10
batch_size = 2
group_size = 4
gradient_accumulation_steps = 1
learning_rate = 5e-6
weight_sync_interval = 1
log_interval = 1
max_completion_tokens = 256
async_semaphore_max = 4
step_rewards_enabled = true
step_rewards_mode = "decision_stepwise"
step_rewards_beta = 0.0
step_rewards_indicator_lambda = 1.0
event_rewards_kind = "unique"

[training.weight_sync]
enable = true
targets = ["policy"]
weight_sync_interval = 1

[rubric]
enabled = false
"""
"""Of the shape that the hosted service's own examples have."""


def test_a_whole_published_config_goes_through():
    toml = tomllib.loads(PUBLISHED)
    values = read_rl({"job_type": "rl", "data": {"config": toml, "base_model": toml["model"]["base"]}})
    config = values["config"]
    assert (values["source"], values["task_app_url"]) == ("Qwen/Qwen3-4B", "https://an-app.modal.run")
    assert (config.iterations, config.groups_per_iteration, config.group_size) == (10, 10, 4)
    assert (config.train_kind, config.ratio, config.learning_rate, config.concurrency) == ("lora", "sequence", 5e-6, 4)
    assert config.dev == DevSeeds(every=20, seeds=tuple(range(10)))
    assert set(values["not_applied"]) == {
        "services.judge_url",
        "compute.gpu_type",
        "compute.gpu_count",
        "topology.type",
        "vllm.max_model_len",
        "rollout.ops",
    }


# --------------------------------------------------------------------------- the model to start from


@pytest.mark.parametrize(
    ("data", "tables", "source"),
    [
        ({}, {"model": {"base": "a"}}, "a"),
        ({}, {"model": {"source": "ft:a:job_1"}}, "ft:a:job_1"),
        ({}, {"policy": {"model_name": "a"}}, "a"),
        ({}, {"policy": {"source": "a"}}, "a"),
        ({"model": "b"}, {}, "b"),
        ({"base_model": "b"}, {}, "b"),
        ({"model": "b"}, {"model": {"base": "a"}}, "b"),  # the client's --model
        ({}, {"model": {"base": "a", "source": ""}}, "a"),
    ],
)
def test_the_model_to_start_from_is_named_in_one_place(data, tables, source):
    payload = {"data": {"endpoint_base_url": "http://t", **data, "config": tables}}
    assert read_rl(payload)["source"] == source


@pytest.mark.parametrize(
    ("data", "tables"),
    [
        ({}, {"model": {"base": "a", "source": "b"}}),
        ({}, {"policy": {"model_name": "a", "source": "b"}}),
        ({"model": "a", "base_model": "b"}, {}),
        ({"model": "c"}, {"model": {"base": "a", "source": "b"}}),
        ({}, {}),
        ({}, {"model": {"base": "", "label": "x"}}),
    ],
)
def test_both_or_neither_is_refused_with_both_keys(data, tables):
    with pytest.raises(ConfigError, match="exactly one") as e:
        read_rl({"data": {"endpoint_base_url": "http://t", **data, "config": tables}})
    assert "source" in str(e.value) or "model" in str(e.value)
    assert "base" in str(e.value) or "model_name" in str(e.value)


# --------------------------------------------------------------------------- judges


def programmatic(**options):
    return {
        "enabled": True,
        "reward_blend": {"env": 0.5, "event": 0.5},
        "options": {"model": "programmatic", **options},
    }


def judge_of(**tables):
    values = read_rl(wire_rl(**tables))
    return values["config"].judge, values["not_applied"]


def test_a_published_judge_is_applied():
    options = {"provider": "groq", "model": "m", "max_concurrency": 3, "timeout_s": 7, "event": False, "tracks": ["x"]}
    blend = {"env": 0.2, "event": 0.4, "outcome": 0.4}
    judge, notes = judge_of(judge={"type": "groq", "timeout_s": 45, "reward_blend": blend, "options": options})
    assert (judge.model, judge.inference_url) == ("m", "https://api.groq.com/openai/v1")
    assert judge.reward_blend == RewardBlend(env=0.2, event=0.0, outcome=0.4)
    assert (judge.concurrency, judge.timeout_seconds, judge.rubric) == (3, 7.0, None)
    assert list(notes) == ["judge.options.tracks"]


def test_the_older_table_rubric_is_applied_too():
    rubric = {
        "enabled": True,
        "model": "m",
        "api_base": "http://judge.test/v1",
        "api_key_env": "KEY",
        "weights": {"env": 1.0, "outcome": 2.0},
        "outcome": {"rubric_id": "crafter/x", "criteria": [{"id": "skill", "weight": 2}]},
    }
    judge, notes = judge_of(rubric=rubric)
    assert (judge.model, judge.inference_url) == ("m", "http://judge.test/v1")
    assert judge.reward_blend == RewardBlend(outcome=2.0)
    assert judge.rubric["outcome"] == [{"id": "skill", "weight": 2}]
    assert list(notes) == ["judge.options.rubric_id", "rubric.api_key_env"]


def test_the_program_needs_no_address_and_takes_the_rubric_of_the_other_table():
    judge, _ = judge_of(judge=programmatic(), rubric={"event": {"criteria": [{"id": "achievement_unlocks"}]}})
    assert judge.model == "programmatic" and judge.rubric["events"] == [{"id": "achievement_unlocks"}]


@pytest.mark.parametrize(
    ("tables", "key", "reason"),
    [
        ({"judge": {"reward_blend": {"event": 1}, "options": {}}}, "judge", "names no model"),
        (
            {"judge": {"reward_blend": {"event": 1}, "options": {"provider": "gemini", "model": "g"}}},
            "judge",
            "address",
        ),
        ({"judge": {"options": {"model": "programmatic"}}}, "judge", "weight"),
        ({"judge": programmatic(event=False)}, "judge", "weight"),
        ({"rubric": {"enabled": True, "weights": {"event": 1}}}, "rubric", "names no model"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_recorded_with_the_reason(tables, key, reason):
    judge, notes = judge_of(**tables)
    assert judge is None and reason in notes[key]


@pytest.mark.parametrize("name", ["judge", "rubric"])
def test_a_judge_that_is_switched_off_is_none(name):
    assert judge_of(**{name: {"enabled": False, "reward_blend": {"event": 1}}}) == (None, {})


def test_unknown_keys_of_a_judge_are_recorded():
    judge = programmatic(nonsense=1)
    _, notes = judge_of(judge={**judge, "more": 2})
    assert notes == {"judge.options.nonsense": "unknown to this backend", "judge.more": "unknown to this backend"}


# --------------------------------------------------------------------------- ours and theirs, good and bad


def test_our_own_names_win_over_the_wires():
    values = read_rl(wire_rl(training={"iterations_per_epoch": 10, "iterations": 3}, rollout={"max_env_steps": 7}))
    assert (values["config"].iterations, values["config"].max_env_steps) == (3, 7)


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        ({"data": {"endpoint_base_url": "http://t"}}, "model.source .* or model.base"),
        ({"data": {"model": "m"}}, "endpoint_base_url"),
        (wire_rl(training={"learning_rate": -1}), "learning_rate"),
        (wire_rl(training={"iterations_per_epoch": "ten"}), "iterations_per_epoch"),
        (wire_rl(training={"seeds_start": 899_999, "iterations": 100_000}), "held-out"),
        (wire_rl(training={"seeds": [1, 1_000_000]}), "training.seeds contains held-out seed 1000000"),
        (wire_rl(data={"seeds": [1, 1_000_007]}), "data.seeds contains held-out seed 1000007"),
        (wire_rl(evaluation={"seeds": [1_000_000]}), "evaluation.seeds contains held-out seed"),
        (wire_rl(training={"dev": {"seeds": [1_000_000]}}), "training.dev.seeds contains held-out"),
        (wire_rl(evaluation={"seeds": "some"}), "evaluation.seeds"),
        (wire_rl(rollout={"max_concurrent_rollouts": "many"}), "max_concurrent_rollouts"),
        (wire_rl(training={"step_rewards_enabled": True, "step_rewards_mode": "stepwise"}), "step_rewards.mode"),
        (wire_rl(training={"step_rewards": {"weights": {"colect_wood": 1}}}), "collect_wood"),
        (wire_rl(judge=programmatic(rubric_overrides={"outcome": [{"id": "a", "weight": 0}]})), "judge: .*weight"),
        (wire_rl(judge={**programmatic(), "reward_blend": {"event": "much"}}), "judge.reward_blend.event"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_its_key(payload, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read_rl(payload)


@pytest.mark.parametrize(
    ("values", "shared"),
    [
        ({"dev": {"seeds": [100_003, 100_900]}}, 1),
        ({"seeds": [7, 9], "dev": {"seeds": [9, 7, 8]}}, 2),
        ({"seeds": [7, 9], "dev": {"seeds": [8]}}, 0),
        ({"curriculum": {"seeds": 500}, "dev": {"seeds": [100_003, 100_900]}}, 1),
        ({}, 0),
    ],
)
def test_dev_seeds_that_are_trained_on_are_warned_about(values, shared):
    spec = RlSpec(config=RlConfig.model_validate(values), task_app_url="http://t", source="crafter-tiny")
    told = spec.warnings()
    assert len(told) == bool(shared) and all(w.startswith(f"{shared} of ") for w in told)
