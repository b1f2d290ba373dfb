"""Memory and time before a job starts: what is predicted, what is refused, what would help."""

from __future__ import annotations

import json

import pytest

from crafter_pipeline.config import RlConfig, SftConfig
from crafter_pipeline.errors import ConfigError
from train_app.jobs import JobStore
from train_app.machine import Machine, find_machine
from train_app.model_shapes import shape_of
from train_app.planning import (
    Rows,
    lines_of,
    plan_rl,
    plan_sft,
    refuse_what_cannot_fit,
    remembered_speed,
    rows_of,
)
from train_app.specs import RlSpec, SftSpec

GIB = 1 << 30
QWEN3_4B = dict(
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    tie_word_embeddings=True,
)
ROWS = Rows(count=1000, mean_tokens=400, longest_tokens=800, trained_tokens=60)


def gpu(memory=80 * GIB, free=None):
    return Machine("cuda", "NVIDIA H100", memory, memory if free is None else free, 300e12, 16, bf16=True)


@pytest.fixture
def qwen(tmp_path):
    """A folder with the config.json of Qwen3-4B."""
    (tmp_path / "qwen").mkdir()
    (tmp_path / "qwen" / "config.json").write_text(json.dumps(QWEN3_4B))
    return str(tmp_path / "qwen")


def test_parameters_are_read_from_the_config(qwen):
    assert shape_of(qwen).parameters == pytest.approx(4.02e9, rel=0.01)
    assert shape_of("crafter-tiny").parameters == pytest.approx(433_760, rel=0.01)
    assert shape_of("no/such-model") is None


def test_experts_that_rest_take_memory_and_no_time(tmp_path):
    moe = {**QWEN3_4B, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 768}
    (tmp_path / "config.json").write_text(json.dumps(moe))
    shape = shape_of(str(tmp_path))
    one = 36 * 3 * 2560 * 768
    assert shape.linear_parameters - shape.active_parameters == 6 * one


def test_full_fine_tuning_holds_sixteen_bytes_per_weight_and_a_copy(qwen):
    memory = plan_sft(SftConfig(batch_size=8), qwen, gpu(), ROWS).memory
    assert memory.weights + memory.gradients + memory.optimizer == pytest.approx(18 * 4.02e9, rel=0.01)


@pytest.mark.parametrize(
    ("change", "less"),
    [
        ({"train_kind": "lora"}, 0.35),
        ({"train_kind": "qlora"}, 0.2),
        ({"micro_batch_size": 1}, 0.97),
    ],
)
def test_what_takes_less(qwen, change, less):
    whole = plan_sft(SftConfig(batch_size=16), qwen, gpu(), ROWS)
    smaller = plan_sft(SftConfig(batch_size=16, **change), qwen, gpu(), ROWS)
    assert smaller.memory.total < less * whole.memory.total


def test_checkpointing_holds_a_row_per_layer(qwen):
    cpu = Machine("cpu", "CPU", 512 * GIB, 512 * GIB, 1e12, 64)
    every = plan_sft(SftConfig(), qwen, cpu, ROWS).memory.activations
    assert plan_sft(SftConfig(gradient_checkpointing=True), qwen, cpu, ROWS).memory.activations < every / 10


def spec_of(folder, source, **values):
    file = folder / "train.jsonl"
    row = {"messages": [{"role": "user", "content": "noop " * 400}, {"role": "assistant", "content": "do " * 60}]}
    file.write_text((json.dumps(row) + "\n") * 20)
    return SftSpec(config=SftConfig(base_model=source, **values), training_file=str(file), training_file_sha256="x")


def on(monkeypatch, machine):
    monkeypatch.setattr("train_app.planning.find_machine", lambda device: machine)


def test_what_cannot_fit_is_refused_with_numbers_and_what_helps(qwen, tmp_path, monkeypatch):
    on(monkeypatch, gpu(24 * GIB))
    store = JobStore.in_folder(tmp_path)
    with pytest.raises(ConfigError) as refused:
        refuse_what_cannot_fit(store, spec_of(tmp_path, qwen))
    assert "NVIDIA H100 has 24.0 GiB" in str(refused.value)
    assert "weights 22." in str(refused.value) and 'It would fit with train_kind = "lora"' in str(refused.value)
    refuse_what_cannot_fit(store, spec_of(tmp_path, qwen, train_kind="qlora", micro_batch_size=1))


def test_memory_that_others_hold_now_refuses_nothing(tmp_path, monkeypatch):
    on(monkeypatch, gpu(24 * GIB, free=0))
    refuse_what_cannot_fit(JobStore.in_folder(tmp_path), spec_of(tmp_path, "crafter-tiny"))


def test_long_rows_that_the_dataset_does_not_have_refuse_nothing(tmp_path, monkeypatch):
    on(monkeypatch, Machine("cpu", "CPU", 3 * GIB, 3 * GIB, 1e11, 4))
    config = dict(sequence_length=4096, batch_size=512)
    assert plan_sft(SftConfig(**config), "crafter-tiny", Machine("cpu", "CPU", 3 * GIB, 0, 1e11, 4)).can_never_fit
    refuse_what_cannot_fit(
        JobStore.in_folder(tmp_path), spec_of(tmp_path, "crafter-tiny", **config | {"batch_size": 64})
    )


def test_rl_holds_a_second_copy_that_plays(qwen, tmp_path, monkeypatch):
    config = RlConfig()
    assert plan_rl(config, qwen, gpu()).memory.weights == plan_sft(SftConfig(), qwen, gpu()).memory.weights + 2 * (
        shape_of(qwen).parameters
    )
    on(monkeypatch, gpu(40 * GIB))
    spec = RlSpec(config=config, task_app_url="http://t:1", source=qwen, environment="crafter", policy={})
    with pytest.raises(ConfigError, match="train_kind = "):
        refuse_what_cannot_fit(JobStore.in_folder(tmp_path), spec)


def test_whole_lives_of_rl_are_expected_to_end_early():
    def seconds(max_env_steps):
        return plan_rl(RlConfig(max_env_steps=max_env_steps), "crafter-tiny", LAPTOP).seconds

    assert seconds(200) < seconds(10_000) < 1.6 * seconds(200)


SMOLLM2_135M = dict(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49152,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
LAPTOP = Machine("cpu", "CPU", 16 * GIB, 12 * GIB, 50e9, 8)
SMALL_RL = dict(train_kind="lora", groups_per_iteration=1, group_size=2, max_env_steps=2)


def rl_memory(folder, policy=None, weights=None, max_turns=None, **values):
    """Of RL on SmolLM2-135M; weights: a teacher's."""
    (folder / "config.json").write_text(json.dumps(SMOLLM2_135M))
    config = RlConfig(**{**SMALL_RL, **values})
    return plan_rl(config, str(folder), LAPTOP, policy=policy, teacher=weights, max_turns=max_turns).memory


def test_rl_holds_the_rows_it_has_and_no_more_than_a_forward_s(tmp_path):
    few = rl_memory(tmp_path)
    assert few.total < 6 * GIB
    many = rl_memory(tmp_path, groups_per_iteration=8, group_size=8, max_env_steps=100, concurrency=2)
    assert many.total < 7 * GIB
    assert rl_memory(tmp_path, gradient_checkpointing=True).total < few.total / 1.5
    flying = rl_memory(tmp_path, groups_per_iteration=8, group_size=8)
    assert flying.activations > few.activations + 2 * GIB  # keys and values of 64 rollouts


def test_rl_of_long_answers_holds_more_scores_up_to_the_bound(tmp_path):
    short, long, longest = (rl_memory(tmp_path, policy={"max_tokens": n}).logits for n in (16, 512, 1300))
    assert short < long < longest
    many = dict(group_size=64, max_env_steps=100)
    assert rl_memory(tmp_path, policy={"max_tokens": 1300}, **many).logits <= GIB


def test_rl_of_few_turns_trains_few_rows(tmp_path):
    one = rl_memory(tmp_path, minibatches=1, max_env_steps=50, max_turns=1, gradient_checkpointing=True)
    all_ = rl_memory(tmp_path, minibatches=1, max_env_steps=50, gradient_checkpointing=True)
    assert one.activations < all_.activations
    assert rl_memory(tmp_path, minibatches=1, max_samples=2, gradient_checkpointing=True) == one


def test_rl_counts_the_start_weights_and_a_teacher_that_the_worker_loads(tmp_path):
    plain, kl = (rl_memory(tmp_path, train_kind="fft", kl=weight).weights for weight in (0.0, 0.1))
    whole = 4 * shape_of(str(tmp_path)).parameters
    assert kl - plain == whole
    distils = dict(advantage="distillation", teacher="t", train_kind="fft")
    assert rl_memory(tmp_path, weights=str(tmp_path), **distils).weights - plain == whole
    served = rl_memory(tmp_path, weights=str(tmp_path), teacher_url="http://teacher", **distils)
    assert served.weights == plain


def test_time_counts_steps_tokens_and_epochs():
    machine = Machine("cpu", "CPU", GIB, GIB, 50e9, 2)
    plan = plan_sft(SftConfig(n_epochs=2, batch_size=32), "crafter-tiny", machine, ROWS)
    assert (plan.steps, plan.tokens) == (64, 64 * 32 * 400)
    assert 64 * machine.step_seconds < plan.seconds < 600
    low, high = plan.to_json()["seconds_range"]
    assert low < plan.seconds < high
    assert plan_sft(SftConfig(examples=32), "crafter-tiny", machine, ROWS).steps == 1


def test_the_last_job_of_a_base_tells_the_time(tmp_path):
    store = JobStore.in_folder(tmp_path)
    for kind, speed in (("fft", 1000.0), ("lora", 500.0)):
        spec = {"config": SftConfig(train_kind=kind).model_dump(mode="json")}
        job = store.create_job("sft", "crafter-tiny", spec, "", request={}, ready=True)
        store.claim(job.id)
        attempt = store.begin_attempt(job.id).attempts
        for step, value in enumerate((1.0, speed, speed), start=1):  # the first step is slow
            store.add_metrics(job.id, step, {"train.tokens_per_second": value}, "train", attempt)
        store.set_status(job.id, "succeeded")
    assert remembered_speed(store, "crafter-tiny", SftConfig()) == 1000.0
    assert remembered_speed(store, "crafter-tiny", SftConfig(train_kind="qlora")) is None
    plan = plan_sft(SftConfig(max_steps=10), "crafter-tiny", gpu(), ROWS, 1000.0)
    assert plan.seconds == 10 * 32 * 400 / 1000 and "the last job" in plan.basis


def test_rows_are_counted_and_their_tokens_estimated(tmp_path):
    file = tmp_path / "train.jsonl"
    short, long = ({"messages": [{"role": "user", "content": "noop " * n}]} for n in (50, 200))
    file.write_text("".join(json.dumps(row) + "\n" for row in [short] * 300 + [long]))
    rows = rows_of(file, "crafter-tiny")
    assert rows.count == 301 and 40 < rows.mean_tokens < 80 and 150 < rows.longest_tokens < 300
    assert 0.5 < rows.trained_tokens / rows.mean_tokens <= 1  # the one message is the answer
    assert rows_of(tmp_path / "missing", "crafter-tiny") is None


def test_the_machine_is_its_smallest_gpu():
    answer = "NVIDIA H100, 81559, 80000\nNVIDIA L4, 23034, 1000\n"
    machine = find_machine("auto", lambda command: answer)
    assert (machine.device, machine.name, machine.free_bytes) == ("cuda", "NVIDIA L4", 1000 << 20)
    without = find_machine("cpu", lambda command: answer)
    assert without.device == "cpu" and without.memory_bytes > GIB // 4

    def no_driver(command):
        raise FileNotFoundError

    assert find_machine("auto", no_driver).device in ("cpu", "mps")


def test_a_plan_reads_in_lines():
    lines = lines_of(plan_sft(SftConfig(), "crafter-tiny", gpu(1 * GIB, free=0), ROWS).to_json())
    assert lines[0].startswith("model    0.4332 M parameters")
    assert any("NVIDIA H100 has 1.0 GiB, 0 MiB free" in line for line in lines)


def test_the_route_plans_and_makes_no_job(make_service):
    with make_service() as client:
        answer = client.post("/api/plan", json={"model": "crafter-tiny", "hyperparameters": {"max_steps": 5}})
        assert answer.status_code == 200, answer.text
        assert (answer.json()["steps"], answer.json()["kind"], answer.json()["fits"]) == (5, "sft", True)
        rl = {
            "job_type": "rl",
            "data": {"endpoint_base_url": "http://t:1", "config": {"model": {"base": "crafter-tiny"}}},
        }
        assert client.post("/api/v1/plan", json=rl).json()["kind"] == "rl"
        assert client.get("/api/jobs").json()["data"] == []
        assert client.post("/api/plan", json={"model": "no/such"}).status_code == 400
