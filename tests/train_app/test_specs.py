"""The wire's payloads read into our configs, and ours written to the wire."""

import pytest

from crafter_pipeline.clients.backend import rl_payload, sft_payload
from crafter_pipeline.config import JudgeConfig, PolicyConfig, RewardBlend, RlConfig, SftConfig
from crafter_pipeline.errors import ConfigError
from train_app.specs import RlSpec, SftSpec, read_rl, read_sft

EVERY_RL_VALUE = dict(
    warmup_ratio=0.25,
    env_config={"level": "medium"},
    iterations=3,
    groups_per_iteration=5,
    group_size=6,
    seeds_start=123,
    max_env_steps=77,
    learning_rate=1e-5,
    advantage="episode",
    gamma=0.9,
    minibatches=2,
    clip_low=0.1,
    clip_high=0.3,
    max_samples=99,
    temperature=0.8,
    seed=4,
    concurrency=9,
    checkpoint_every=1,
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
)
EVERY_SFT_VALUE = dict(
    base_model="Qwen/Qwen3-0.6B",
    train_kind="lora",
    n_epochs=2.5,
    max_steps=7,
    batch_size=3,
    learning_rate=1e-4,
    warmup_ratio=0.1,
    weight_decay=0.2,
    sequence_length=99,
    train_thinking=False,
    seed=5,
    lora_rank=4,
    lora_alpha=8,
    lora_dropout=0.1,
)


def wire_rl(**tables):
    return {
        "job_type": "rl",
        "data": {
            "endpoint_base_url": "http://task:8001/",
            "config": {"model": {"base": "Qwen/Qwen3-0.6B"}, "rollout": {}, "training": {}, **tables},
        },
    }


@pytest.mark.parametrize(
    "config", [SftConfig(), *(SftConfig(**EVERY_SFT_VALUE | {"train_kind": k}) for k in ("fft", "lora", "qlora"))]
)
def test_a_fine_tuning_job_survives_the_wire(config):
    assert set(EVERY_SFT_VALUE) == set(SftConfig.model_fields), "a new field needs a place on the wire"
    assert read_sft(sft_payload(config, "file_1")) == (config, {})


@pytest.mark.parametrize("config", [RlConfig(), RlConfig(**EVERY_RL_VALUE)])
@pytest.mark.parametrize("source", ["crafter-tiny", "fft:crafter-tiny:job_0123456789abcdef"])
def test_an_rl_job_survives_the_wire(config, source):
    assert set(EVERY_RL_VALUE) == set(RlConfig.model_fields), "a new field needs a place on the wire"
    policy = PolicyConfig(history=5, max_tokens=33, max_actions_per_turn=2)
    payload = rl_payload(config, task_app_url="http://t:1", source=source, environment="crafter", policy=policy)
    values = read_rl(payload)
    assert values["config"] == config
    assert (values["task_app_url"], values["source"], values["environment"]) == ("http://t:1", source, "crafter")
    assert PolicyConfig(**values["policy"]) == policy
    assert values["not_applied"] == {}


def test_specs_survive_the_table():
    rl = RlSpec(**read_rl(wire_rl()))
    assert RlSpec.model_validate_json(rl.model_dump_json()) == rl
    sft = SftSpec(config=SftConfig(), training_file="/x", training_file_sha256="s", aliases={"a": "b"})
    assert SftSpec.model_validate_json(sft.model_dump_json()) == sft


@pytest.mark.parametrize(
    ("hyper", "training", "kind"),
    [
        ({}, {}, "fft"),
        ({"train_kind": "fft"}, {"mode": "full_finetune"}, "fft"),
        ({"train_kind": "peft"}, {}, "lora"),
        ({"train_kind": "lora"}, {}, "lora"),
        ({}, {"mode": "lora"}, "lora"),
        ({"train_kind": "peft"}, {"mode": "lora", "use_qlora": True}, "qlora"),
        ({}, {"mode": "sft_offline"}, "fft"),
    ],
)
def test_the_kind_of_training_is_read_from_every_place(hyper, training, kind):
    payload = {"hyperparameters": hyper, "metadata": {"effective_config": {"training": training}}}
    assert read_sft(payload)[0].train_kind == kind


@pytest.mark.parametrize(
    ("hyper", "rows"),
    [
        ({"batch_size": 8}, 8),
        ({"batch_size": 4, "gradient_accumulation_steps": 16}, 64),
        ({"batch_size": 64, "per_device_batch": 2, "gradient_accumulation_steps": 8}, 16),
        ({"global_batch": 32, "per_device_batch": 2}, 32),
    ],
)
def test_a_batch_is_what_one_optimiser_step_sees(hyper, rows):
    assert read_sft({"hyperparameters": hyper})[0].batch_size == rows


def test_a_published_rl_config_is_applied_where_it_can_be(monkeypatch):
    monkeypatch.setattr("train_app.specs.has_gpu", lambda: False)
    values = read_rl(
        wire_rl(
            algorithm={"type": "online", "method": "policy_gradient", "variety": "gspo"},
            compute={"gpu_type": "H100", "gpu_count": 8},
            vllm={"tensor_parallel_size": 4},
            rollout={
                "env_name": "Crafter",
                "max_turns": 10,
                "episodes_per_batch": 32,
                "max_concurrent_rollouts": 8,
                "policy_config": {"max_actions_per_turn": 2, "inference_url": "http://x", "model": "y"},
            },
            evaluation={"instances": 10, "every_n_iters": 5},
            training={
                "num_epochs": 2,
                "iterations_per_epoch": 10,
                "batch_size": 16,
                "group_size": 4,
                "learning_rate": 5e-5,
                "weight_sync_interval": 2,
                "step_rewards_enabled": True,
                "step_rewards_mode": "decision_stepwise",
            },
        )
    )
    config = values["config"]
    assert (config.iterations, config.groups_per_iteration, config.group_size) == (20, 8, 4)
    assert (config.learning_rate, config.concurrency, config.max_env_steps) == (5e-5, 8, 20)
    assert config.step_rewards == {"enabled": True, "mode": "decision_stepwise"}
    assert (values["environment"], values["max_turns"], values["task_app_url"]) == ("crafter", 10, "http://task:8001")
    assert values["policy"] == {"max_actions_per_turn": 2}
    for key in ("compute.gpu_type", "vllm.tensor_parallel_size", "evaluation", "training.weight_sync_interval"):
        assert key in values["not_applied"]


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
        ({"services": {"judge_url": "http://j"}}, "services.judge_url", "itself"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_recorded_with_the_reason(tables, key, reason):
    judge, notes = judge_of(**tables)
    assert judge is None and reason in notes[key]


@pytest.mark.parametrize("name", ["judge", "rubric"])
def test_a_judge_that_is_switched_off_is_none(name):
    assert judge_of(**{name: {"enabled": False, "reward_blend": {"event": 1}}}) == (None, {})


def test_our_own_names_win_over_the_wires():
    values = read_rl(wire_rl(training={"iterations_per_epoch": 10, "iterations": 3}, rollout={"max_env_steps": 7}))
    assert (values["config"].iterations, values["config"].max_env_steps) == (3, 7)


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        ({"data": {"endpoint_base_url": "http://t"}}, "model.source or model.base"),
        ({"data": {"model": "m"}}, "endpoint_base_url"),
        (wire_rl(training={"learning_rate": -1}), "learning_rate"),
        (wire_rl(training={"iterations_per_epoch": "ten"}), "iterations_per_epoch"),
        (wire_rl(training={"seeds_start": 899_999, "iterations": 100_000}), "held-out"),
        (wire_rl(training={"step_rewards_enabled": True, "step_rewards_mode": "stepwise"}), "step_rewards.mode"),
        (wire_rl(training={"step_rewards": {"weights": {"colect_wood": 1}}}), "collect_wood"),
        (wire_rl(judge=programmatic(rubric_overrides={"outcome": [{"id": "a", "weight": 0}]})), "judge: .*weight"),
        (wire_rl(judge={**programmatic(), "reward_blend": {"event": "much"}}), "judge.reward_blend.event"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_its_key(payload, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read_rl(payload)
