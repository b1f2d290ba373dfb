"""Recipes of fine-tuning: what they may say, and the job that comes of it."""

from __future__ import annotations

import tomllib

import pytest

from crafter_pipeline.config import SftConfig
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.recipes.sft import SftRecipe, train_kind
from crafter_pipeline.recipes.train import SftPlan
from train_app.specs import read_sft

PUBLISHED = """
[algorithm]
type = "offline"
method = "supervised_finetune"
variety = "fft"
[job]
model = "Qwen/Qwen3-4B"
data = "rows.jsonl"
[compute]
gpu_type = "H100"
gpu_count = 4
nodes = 1
[data.topology]
container_count = 4
[training]
mode = "sft_offline"
use_qlora = false
[training.validation]
enabled = true
eval_steps = 20
[hyperparameters]
n_epochs = 2
world_size = 4
per_device_batch = 2
gradient_accumulation_steps = 64
sequence_length = 2048
learning_rate = 8e-6
warmup_ratio = 0.03
train_kind = "fft"
[hyperparameters.parallelism]
use_deepspeed = true
deepspeed_stage = 3
bf16 = true
"""


def body(text: str, validation: str | None = None) -> dict:
    return SftPlan.of(tomllib.loads(text), "r.toml").body("file_1", validation, None)


def test_the_body_is_the_published_clients_and_what_it_forgets():
    assert body(PUBLISHED, "file_2") == {
        "model": "Qwen/Qwen3-4B",
        "training_type": "sft_offline",
        "training_file_id": "file_1",
        "hyperparameters": {
            "n_epochs": 2,
            "world_size": 4,  # theirs leaves it out
            "per_device_batch": 2,
            "gradient_accumulation_steps": 64,
            "sequence_length": 2048,
            "learning_rate": 8e-6,
            "warmup_ratio": 0.03,
            "train_kind": "fft",
            "parallelism": {"use_deepspeed": True, "deepspeed_stage": 3, "bf16": True},
            "evaluation_strategy": "steps",
            "eval_steps": 20,
            "save_best_model_at_end": True,
            "metric_for_best_model": "val.loss",
            "greater_is_better": False,
        },
        "metadata": {
            "effective_config": {
                "compute": {"gpu_type": "H100", "gpu_count": 4, "nodes": 1},
                "data": {"topology": {"container_count": 4}, "validation_files": ["file_2"]},
                "training": {"mode": "sft_offline", "use_qlora": False, "validation": {"enabled": True}},
            }
        },
    }


def test_an_adapter_is_found_wherever_a_recipe_has_it():
    rest = '[job]\nmodel = "m"\n[tags]\nteam = "x"\n'
    older = body(f'[algorithm]\nvariety = "lora"\n[lora]\nr = 8\nalpha = 16\ntarget_modules = ["all-linear"]\n{rest}')
    newer = body(f'[training]\nmode = "lora"\nuse_qlora = true\n[training.lora]\nr = 8\ndropout = 0.1\n{rest}')
    nearest = body(f'[training.lora]\nr = 8\n[hyperparameters]\nlora_rank = 4\ntrain_kind = "qlora"\n{rest}')
    configs = [read_sft(b)[0] for b in (older, newer, nearest)]
    assert [(c.train_kind, c.lora_rank) for c in configs] == [("lora", 8), ("qlora", 8), ("qlora", 4)]
    assert (configs[0].lora_alpha, configs[0].lora_target_modules, configs[1].lora_dropout) == (16, (), 0.1)
    assert [b["hyperparameters"]["train_kind"] for b in (older, newer, nearest)] == ["peft"] * 3
    assert older["metadata"]["tags"] == {"team": "x"}


def test_every_field_of_the_trainer_is_a_hyperparameter():
    model = SftRecipe.model_fields["hyperparameters"].annotation
    assert SftConfig.model_fields.keys() - model.model_fields.keys() == {"base_model", "compute"}
    asked = body(
        'job.model = "m"\n[hyperparameters]\nmax_steps = 2\nbatching = "packing"\nkeep = "last"\ndtype = "fp32"'
    )
    config = read_sft(asked)[0]
    assert (config.max_steps, config.batching, config.dtype) == (2, "packing", "fp32")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[hyperparameters]\nlearning_rat = 1e-5\n[job]\nmodel = "m"', "did you mean 'learning_rate'?"),
        ('[hyperparameters]\nmax_step = 2\n[job]\nmodel = "m"', "did you mean 'max_steps'?"),
        ('[hyperparameters]\nmax_steps = 0\n[job]\nmodel = "m"', "hyperparameters.max_steps: Input should be greater"),
        ('[algoritm]\ntype = "offline"\n[job]\nmodel = "m"', "did you mean 'algorithm'?"),
        ('[job]\nmodel = "m"\n[policy]\nmodel_name = "n"', "job.model = 'm' and policy.model_name = 'n'"),
        ("[job]\ndata = 'x'", "no model is named"),
        ('[job]\nmodel = "fft:REPLACE-WITH-SFT-JOB-ID"', "job.model is still the placeholder"),
        (
            '[job]\nmodel = "m"\n[algorithm]\nvariety = "fft"\n[training]\nuse_qlora = true',
            'training.use_qlora = true contradicts algorithm.variety = "fft"',
        ),
        ('[job]\nmodel = "m"\n[algorithm]\nvariety = "gspo"', "algorithm.variety is 'gspo'"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(text, words):
    with pytest.raises(ConfigError, match="r.toml") as said:
        body(text)
    assert words in str(said.value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "fft"),
        ('[hyperparameters]\ntrain_kind = "peft"', "lora"),
        ('[algorithm]\nvariety = "qlora"\n[training]\nmode = "lora"\nuse_qlora = true', "qlora"),
        ('[algorithm]\nvariety = "lora"\n[training]\nuse_qlora = true', "qlora"),
        ('[policy]\ntrainer_mode = "lora"', "lora"),
    ],
)
def test_which_weights_move(text, kind):
    assert train_kind(SftRecipe.model_validate(tomllib.loads(text)), "r.toml") == kind


def test_a_validation_that_is_switched_off_needs_no_file():
    text = '[job]\nmodel = "m"\n[data]\nvalidation_path = "gone.jsonl"\n[training.validation]\nenabled = false\n'
    assert SftPlan.of(tomllib.loads(text), "r.toml").validation is None
