"""A fine-tuning job's payload: ours written to the wire and read again, and what published clients send."""

from __future__ import annotations

import pytest

from crafter_pipeline.clients.payloads import sft_payload
from crafter_pipeline.config import PolicyConfig, SftConfig
from crafter_pipeline.config.training import DevEpisodes
from crafter_pipeline.errors import ConfigError
from train_app.specs import SftSpec, read_sft

EVERY_VALUE = dict(
    base_model="Qwen/Qwen3-0.6B",
    train_kind="lora",
    lora_rank=4,
    lora_alpha=8,
    lora_dropout=0.1,
    lora_target_modules=("q_proj", "v_proj"),
    weight_decay=0.2,
    max_grad_norm=0.5,
    seed=5,
    device="cpu",
    dtype="bf16",
    gradient_checkpointing=True,
    gpus=2,
    report_to=("trackio", "tensorboard"),
    price_per_hour=1.5,
    n_epochs=2.5,
    max_steps=7,
    examples=100,
    batch_size=12,
    micro_batch_size=3,
    batching="packing",
    learning_rate=1e-4,
    warmup_ratio=0.1,
    schedule="linear",
    sequence_length=99,
    train_thinking=False,
    validation_share=0.25,
    eval_every=3,
    save_steps=4,
    keep="best_reward",
    dev=DevEpisodes(every=5, seeds=(1, 2), max_env_steps=9, policy=PolicyConfig(history=5)),
)


def wire(hyper=None, *, training=None, lora=None, data=None, compute=None):
    effective = {"training": training or {}, "lora": lora or {}, "data": data or {}, "compute": compute or {}}
    return {
        "model": "Qwen/Qwen3-0.6B",
        "hyperparameters": hyper or {},
        "metadata": {"effective_config": effective},
    }


def without_gpu(monkeypatch):
    monkeypatch.setattr("train_app.specs.sft.has_gpu", lambda: False)
    monkeypatch.setattr("train_app.specs.base.has_gpu", lambda: False)


def test_every_field_is_among_those_that_survive():
    here = set(SftConfig.model_fields) - {"compute", "optimizer"}  # for hosted backends; not beside an adapter
    assert set(EVERY_VALUE) == here, "a new field needs a place on the wire"
    default = SftConfig()
    assert all(getattr(SftConfig(**EVERY_VALUE), name) != getattr(default, name) for name in EVERY_VALUE)


@pytest.mark.parametrize(
    "config",
    [
        SftConfig(),
        SftConfig(optimizer="muon"),
        *(SftConfig(**EVERY_VALUE | {"train_kind": k}) for k in ("fft", "lora", "qlora")),
    ],
)
def test_a_job_survives_the_wire(config):
    payload = sft_payload(config, "file_1", task_app_url="http://task:8001", tags={"a": "b"})
    assert read_sft(payload) == (config, {})


def test_a_spec_survives_the_table():
    spec = SftSpec(config=SftConfig(**EVERY_VALUE), training_file="/x", training_file_sha256="s", aliases={"a": "b"})
    assert SftSpec.model_validate_json(spec.model_dump_json()) == spec


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
    assert read_sft(wire(hyper, training=training))[0].train_kind == kind


@pytest.mark.parametrize(
    ("hyper", "rows", "per_forward"),
    [
        ({"batch_size": 8}, 8, None),
        ({"batch_size": 4, "gradient_accumulation_steps": 16}, 64, 4),
        ({"batch_size": 64, "per_device_batch": 2, "gradient_accumulation_steps": 8}, 16, 2),
        ({"global_batch": 32, "per_device_batch": 2}, 32, 2),
        ({"global_batch": 32, "per_device_batch": 5}, 32, None),
        ({"per_device_batch": 2, "gradient_accumulation_steps": 4, "world_size": 8}, 64, 2),
        ({"batch_size": 12, "micro_batch_size": 3}, 12, 3),
    ],
)
def test_a_batch_is_what_one_optimiser_step_sees(hyper, rows, per_forward):
    config = read_sft(wire(hyper))[0]
    assert (config.batch_size, config.micro_batch_size) == (rows, per_forward)


@pytest.mark.parametrize(
    "place",
    [
        {"hyper": {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.5, "lora_target_modules": ["q_proj"]}},
        {"lora": {"r": 4, "alpha": 8, "dropout": 0.5, "target_modules": ["q_proj"]}},
        {"training": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.5, "target_modules": ["q_proj"]}}},
    ],
)
def test_the_adapter_is_read_from_every_place(place):
    config = read_sft(wire(**place))[0]
    adapter = (config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_target_modules)
    assert adapter == (4, 8, 0.5, ("q_proj",))


def test_validation_keeps_the_best_model():
    asked = {"evaluation_strategy": "steps", "eval_steps": 20, "save_best_model_at_end": True}
    asked |= {"metric_for_best_model": "eval_loss", "greater_is_better": False}
    for payload in (
        wire(asked, data={"validation_files": ["file_2"]}),
        wire(training={"validation": {"enabled": True, **asked}}, data={"validation_files": ["file_2"]}),
    ):
        config, notes = read_sft(payload)
        assert (config.eval_every, config.keep, notes) == (20, "best_loss", {})


@pytest.mark.parametrize(
    ("payload", "key", "reason"),
    [
        (wire({"save_best_model_at_end": True}), "validation.save_best_model_at_end", "no validation file"),
        (
            wire({"evaluation_strategy": "epoch"}, data={"validation_files": ["f"]}),
            "validation.evaluation_strategy",
            "every eval_steps",
        ),
        (
            wire({"save_best_model_at_end": True, "metric_for_best_model": "bleu"}, data={"validation_files": ["f"]}),
            "validation.metric_for_best_model",
            "lowest validation loss",
        ),
        (wire(data={"validation_path": "/home/x"}), "data.validation_path", "upload the file"),
        (wire({"parallelism": {"bf16": True}}), "parallelism.bf16", "no NVIDIA GPU"),
        (wire({"parallelism": {"use_deepspeed": True}}), "parallelism.use_deepspeed", "gpus"),
        (wire({"parallelism": {"fp16": True}}), "parallelism.fp16", "bf16 and fp32"),
        (wire({"world_size": 8}), "hyperparameters.world_size", "gpus"),
        (wire({"poll": 1}), "hyperparameters.poll", "no such setting"),
        (wire(compute={"gpu_type": "H100"}), "compute.gpu_type", "no NVIDIA GPU"),
        (wire(data={"topology": {"container_count": 2}}), "data.topology", "one machine"),
    ],
)
def test_a_key_without_effect_is_recorded_with_the_reason(monkeypatch, payload, key, reason):
    without_gpu(monkeypatch)
    assert reason in read_sft(payload)[1][key]


def test_activation_checkpointing_is_gradient_checkpointing():
    config, notes = read_sft(wire({"parallelism": {"activation_checkpointing": True, "fsdp": False}}))
    assert config.gradient_checkpointing is True and notes == {}


def test_bf16_is_taken_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr("train_app.specs.sft.has_gpu", lambda: True)
    assert read_sft(wire({"parallelism": {"bf16": True}}))[0].dtype == "bf16"


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (wire({"learning_rate": -1}), r"hyperparameters\.learning_rate: .*\(got -1\)"),
        (wire({"keep": "best_loss"}), r"hyperparameters\.keep: best_loss needs a validation file"),
        (
            wire({"validation_share": 0.1}, data={"validation_files": ["f"]}),
            r"hyperparameters\.validation_share: a validation file is sent as well",
        ),
        (wire({"dev": {}}), r"metadata\.task_app_url: .*name the task app"),
        (wire({"batch_size": 7, "micro_batch_size": 2}), "micro_batch_size"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_its_key(payload, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read_sft(payload)


def test_gpus_that_a_published_client_asks_for_are_taken_where_they_are(monkeypatch):
    monkeypatch.setattr("train_app.specs.base.has_gpu", lambda: True)
    asks = {"compute": {"gpu_count": 4}}
    config, notes = read_sft(wire(**asks), gpus=4)
    assert (config.gpus, notes) == (4, {})
    for payload, there, reason in (
        (wire(**asks), 2, "this backend has 2"),
        (wire({"batch_size": 6}, **asks), 4, "6 rows per step"),
        (wire({"batch_size": 8, "micro_batch_size": 4}, **asks), 4, "4 per forward"),
        (wire({"gpus": 2}, **asks), 4, "hyperparameters.gpus asks for 2"),
    ):
        config, notes = read_sft(payload, gpus=there)
        assert config.gpus in (1, 2) and reason in notes["compute.gpu_count"]


def test_of_a_baseline_network_only_what_it_has_is_applied():
    dev = DevEpisodes(every=5, seeds=(1, 2))
    asked = SftConfig(
        base_model="crafter-mlp", max_steps=9, batch_size=64, schedule="linear", sequence_length=99, dev=dev
    )
    config, notes = read_sft(sft_payload(asked, "file_1", task_app_url="http://t"))
    assert (config.max_steps, config.batch_size, config.dev) == (9, 64, None)
    names = {"hyperparameters.schedule", "hyperparameters.sequence_length", "hyperparameters.dev"}
    assert notes.keys() == names and "scikit-learn" in notes["hyperparameters.dev"]


@pytest.mark.parametrize("wrong", [{"train_kind": "lora"}, {"gpus": 2}, {"keep": "best_reward", "dev": DevEpisodes()}])
def test_of_a_baseline_network_nothing_else_is_made(wrong):
    asked = SftConfig(base_model="fft:crafter-mlp:job_0123456789abcdef", **wrong)
    with pytest.raises(ConfigError, match=f"hyperparameters.{next(iter(wrong))}: crafter-mlp"):
        read_sft(sft_payload(asked, "file_1", task_app_url="http://t"))
