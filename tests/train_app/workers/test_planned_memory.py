"""What `plan` predicts against what jobs take: measured in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")

JOB = """
import json, resource, sys
import numpy as np
from transformers import Qwen3Config, Qwen3ForCausalLM
from crafter_pipeline.config import SftConfig
from train_app.machine import find_machine
from train_app.planning import Rows, plan_sft
from train_app.workers.devices import probe
from train_app.workers.sft.trainer import sft_trainer
from train_app.workers.students import load_trainable, tiny_tokenizer
folder, values = sys.argv[1], json.loads(sys.argv[2])
length, rows = 256, values["batch_size"]
tokenizer = tiny_tokenizer()
shape = dict(hidden_size=512, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=16, head_dim=32)
shape |= dict(vocab_size=16000, num_key_value_heads=8)
ends = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
model = Qwen3ForCausalLM(Qwen3Config(tie_word_embeddings=True, **shape, **ends))
model.save_pretrained(folder)
del model
tokenizer.save_pretrained(folder)
config = SftConfig(base_model=folder, max_steps=2, sequence_length=length, device="cpu", dtype="fp32", **values)
ids = [np.random.default_rng(i).integers(0, 700, length).astype(np.int32) for i in range(rows * 2)]
columns = {"input_ids": ids, "labels": [np.where(np.arange(length) < length - 64, -100, row) for row in ids]}
student = load_trainable(folder, config, probe("cpu", "fp32"))
sft_trainer(student, tokenizer, columns, config, folder + "/out").train()
plan = plan_sft(config, folder, find_machine("cpu"), Rows(rows * 2, length, length, 64))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([plan.memory.total, plan.memory.total - plan.memory.runtime, peak]))
"""

RL_JOB = """
import json, resource, sys
from pathlib import Path
import numpy as np
from transformers import Qwen3Config, Qwen3ForCausalLM
from crafter_pipeline.config import RlConfig
from train_app.curriculum import Task
from train_app.machine import find_machine
from train_app.planning import plan_rl
from train_app.workers.devices import probe
from train_app.workers.inference.sampling import Sample, Sampling
from train_app.workers.rl.sampler import policy_of
from train_app.workers.rl.trainer import Played, World, rl_trainer
from train_app.workers.rollouts.player import PlayedRollout
from train_app.workers.students import load_trainable, tiny_tokenizer
folder, values = sys.argv[1], json.loads(sys.argv[2])
prompt, answer = 800, 64
tokenizer = tiny_tokenizer()
shape = dict(hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=16, head_dim=32)
shape |= dict(vocab_size=16000, num_key_value_heads=8, max_position_embeddings=4096)
ends = dict(pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
model = Qwen3ForCausalLM(Qwen3Config(tie_word_embeddings=True, **shape, **ends))
model.save_pretrained(folder)
del model
tokenizer.save_pretrained(folder)
config = RlConfig(iterations=1, minibatches=1, concurrency=8, device="cpu", dtype="fp32", **values)
hardware, chance = probe("cpu", "fp32"), np.random.default_rng(0)
student = load_trainable(folder, config, hardware)
policy = policy_of(folder, student, config, hardware, Path(folder))
def ids(count):
    return tuple(chance.integers(10, 700, count).tolist())
def play(iteration):
    flying = [policy.sampler.submit(ids(prompt), Sampling(answer)) for _ in range(4)]
    [sample.result(300) for sample in flying]
    def rollout(group, index):
        samples = [Sample(ids(prompt), ids(answer), (-9.7,) * answer, 0, True) for _ in range(config.max_env_steps)]
        return PlayedRollout(Task(group), tuple(samples), (float(index),) * len(samples), (), 0, index=index)
    return Played([[rollout(g, k) for k in range(config.group_size)] for g in range(config.groups_per_iteration)])
rl_trainer(student, config, Path(folder, "out"), World(play, policy.publish), hardware).train()
policy.close()
plan = plan_rl(config, folder, find_machine("cpu"), policy={"max_tokens": answer})
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([plan.memory.total, plan.memory.total - plan.memory.runtime, peak]))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "values",
    [
        {"train_kind": "fft", "batch_size": 8},
        {"train_kind": "fft", "batch_size": 32, "gradient_checkpointing": True},
        {"train_kind": "lora", "batch_size": 8},
        {"train_kind": "qlora", "batch_size": 8},
    ],
)
def test_memory_is_predicted_within_a_factor_of_two(tmp_path, values):
    predicts_what_it_takes(JOB, tmp_path, values)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "values",
    [
        {"train_kind": "fft", "groups_per_iteration": 1, "group_size": 2, "max_env_steps": 2},
        {"train_kind": "lora", "groups_per_iteration": 2, "group_size": 2, "max_env_steps": 4},
    ],
)
def test_memory_of_rl_is_predicted_within_a_factor_of_two(tmp_path, values):
    predicts_what_it_takes(RL_JOB, tmp_path, values)


def predicts_what_it_takes(script, folder, values):
    command = [sys.executable, "-c", script, str(folder), json.dumps(values)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    predicted, beyond_runtime, measured = json.loads(done.stdout.splitlines()[-1])
    assert measured / 2 < predicted < measured * 2
    assert beyond_runtime > measured / 4  # the job is large enough to be told from Python and torch
