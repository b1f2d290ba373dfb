"""The SFT worker on a job of the table: what it tells, what it keeps, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from crafter_pipeline.config import SftConfig  # noqa: E402
from crafter_pipeline.config.training import DevEpisodes  # noqa: E402
from crafter_pipeline.errors import ConfigError, DataError  # noqa: E402
from train_app.jobs import JobStore  # noqa: E402
from train_app.specs import SftSpec  # noqa: E402
from train_app.worker_group import WorkerGroup  # noqa: E402
from train_app.workers.job import WorkerJob  # noqa: E402
from train_app.workers.rollouts.dev_evaluation import DevScore  # noqa: E402
from train_app.workers.sft import worker as sft  # noqa: E402

HERE = Path(__file__).parent


def write_rows(path, count, answer="noop"):
    rows = (
        {"messages": [{"role": "user", "content": f"step {i}"}, {"role": "assistant", "content": answer}]}
        for i in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def make_job(tmp_path):
    """A job of the table as its first worker sees it."""

    def make(rows=24, validation=None, task_app_url=None, **values):
        values = {"max_steps": 4, "batch_size": 8, "sequence_length": 64, **values}
        spec = SftSpec(
            config=SftConfig(**values),
            training_file=write_rows(tmp_path / "train.jsonl", rows),
            training_file_sha256="abc",
            validation_file=None if validation is None else write_rows(tmp_path / "held.jsonl", validation, "do"),
            task_app_url=task_app_url,
        )
        store = JobStore.in_folder(tmp_path / "data")
        job = store.create_job("sft", "crafter-tiny", spec.model_dump(mode="json"), "", request={}, ready=True)
        store.claim(job.id)
        return WorkerJob(store, tmp_path / "data", job.id, store.begin_attempt(job.id).attempts)

    return make


def events(job, kind):
    return [event for event in job.store.events(job.id) if event.type == kind]


def metrics(job, name):
    return [(metric.step, metric.value) for metric in job.store.metrics(job.id, name=name)]


def test_a_job_tells_its_device_its_rows_its_numbers_and_its_cost(make_job):
    job = make_job(price_per_hour=3600.0, validation_share=0.25, eval_every=2)
    sft.run(job)
    (device,) = events(job, "job.device")
    assert (device.data["device"], device.data["dtype"]) == ("cpu", "fp32") and "sdpa" in device.message
    (ready,) = events(job, "sft.data.ready")
    assert ready.data["rows"] + ready.data["validation_rows"] == 24
    first, second = events(job, "sft.data.sample")
    assert first.message.endswith("noop<|im_end|>⟧")
    assert [part["trained"] for part in second.data["parts"]] == [False, True]
    assert [step for step, _ in metrics(job, "train.loss")] == [1, 2, 3, 4]
    assert [step for step, _ in metrics(job, "validation.loss")] == [2, 4]
    for name in (
        "mean_token_accuracy",
        "num_tokens",
        "tokens_per_second",
        "learning_rate",
        "grad_norm",
        "memory_bytes",
    ):
        assert len(metrics(job, f"train.{name}")) == 4, name
    seconds = [value for _, value in metrics(job, "train.cost")]
    assert seconds == sorted(seconds) and 0 < seconds[-1] < 600  # a unit per second
    told = job.store.compute(job.id)
    assert told.tokens == metrics(job, "train.num_tokens")[-1][1] > 0 and told.episodes is None
    assert told.wall_seconds > 0 < told.cpu_seconds and told.gpu_seconds == 0
    model = job.store.resolve_model(job.id)
    assert model.metrics["loss"] == pytest.approx(metrics(job, "train.loss")[-1][1])


def test_the_lowest_validation_loss_is_kept(make_job):
    """Trained on one answer and validated on another, the model gets worse from a point on."""
    job = make_job(validation=8, keep="best_loss", eval_every=1, learning_rate=0.05, warmup_ratio=0.0, max_steps=6)
    sft.run(job)
    losses = metrics(job, "validation.loss")
    best = min(losses, key=lambda point: point[1])[0]
    assert best < 6
    (told,) = events(job, "sft.best")
    assert told.data["step"] == best
    from train_app.workers.students import load_student

    model, tokenizer = load_student(job.store.resolve_model(job.id).path)
    held = list(sft.token_rows(Path(job.sft.validation_file), tokenizer, max_length=64, train_thinking=True))
    total = count = 0.0
    for row in held:
        ids = torch.tensor(row.ids.astype("int64"))[None]
        labels = torch.tensor(row.labels.astype("int64"))[1:]
        with torch.no_grad():
            logits = model.eval()(input_ids=ids).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
        count += int((labels != -100).sum())
    assert total / count == pytest.approx(dict(losses)[best], rel=1e-4)


def test_the_highest_reward_on_dev_seeds_is_kept(make_job, monkeypatch):
    rewards = {2: 1.0, 4: 3.0, 5: 2.0}
    played = {}

    class Evaluator:
        def is_due(self, step):
            return step % 2 == 0

        def score(self, step, weights):
            played[step] = {name: w.clone() for name, w in weights.items()}
            return DevScore({1: rewards[step]}, {1: ()})

    @contextmanager
    def episodes(job, source, hardware):
        yield Evaluator()

    monkeypatch.setattr(sft, "_dev_episodes", episodes)
    job = make_job(max_steps=5, keep="best_reward", dev=DevEpisodes(every=2), task_app_url="http://t:1")
    sft.run(job)
    assert sorted(played) == [2, 4, 5]  # and after the last step
    saved = load_file(Path(job.store.resolve_model(job.id).path) / "model.safetensors")
    assert all(torch.equal(saved[name], played[4][name]) for name in saved)


def test_examples_are_the_first_rows(make_job):
    job = make_job(examples=10, max_steps=None)
    sft.run(job)
    assert events(job, "sft.data.ready")[0].data["rows"] == 10
    assert [step for step, _ in metrics(job, "train.loss")] == [1, 2]


@pytest.mark.parametrize(
    ("values", "error", "complaint"),
    [
        ({"keep": "best_loss"}, ConfigError, "best_loss needs a validation file"),
        ({"validation": 4, "validation_share": 0.5}, ConfigError, "a validation file was sent as well"),
        ({"rows": 2, "validation_share": 0.01}, DataError, "leaves 2 to train and 0 to validate on"),
        ({"sequence_length": 16, "rows": 3, "train_kind": "lora", "lora_target_modules": ("x",)}, ConfigError, "'x'"),
    ],
)
def test_what_cannot_be_trained_is_refused(make_job, values, error, complaint):
    job = make_job(**values)
    with pytest.raises(error, match=complaint):
        sft.run(job)
    assert job.store.resolve_model(job.id) is None


def test_a_tracker_is_told_as_well(make_job, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    job = make_job(report_to=("tensorboard",), max_steps=2)
    try:
        sft.run(job)
    finally:
        os.environ.pop("TENSORBOARD_LOGGING_DIR", None)
    found = EventAccumulator(str(job.folder / "tensorboard"))
    found.Reload()
    assert [point.step for point in found.Scalars("train/loss")] == [1, 2]


def start_worker(job, attempt):
    command = [sys.executable, "-m", "train_app.workers.sft", "--data-dir", str(job.data_dir)]
    return subprocess.Popen(
        [*command, "--job", job.id, "--attempt", str(attempt)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def published(job):
    (file,) = Path(job.store.resolve_model(job.id).path).glob("*.safetensors")
    return load_file(file)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["fft", "lora", "qlora"])
def test_a_worker_that_was_killed_ends_in_the_same_weights(make_job, kind):
    values = dict(rows=64, max_steps=40, save_steps=5, train_kind=kind, lora_rank=4, lora_dropout=0.1)
    through = make_job(**values)
    assert start_worker(through, 1).wait() == 0
    killed = make_job(**values)
    worker = start_worker(killed, 1)
    while not list(killed.folder.glob("checkpoints/checkpoint-10/COMPLETE")):
        assert worker.poll() is None
        time.sleep(0.01)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert start_worker(killed, killed.store.begin_attempt(killed.id).attempts).wait() == 0
    ours, theirs = published(killed), published(through)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert metrics(killed, "train.loss")[-1] == metrics(through, "train.loss")[-1]


PROCESSES = """
import json, os, sys, torch
sys.path.insert(0, {here!r})
from test_trainer import make_rows
from crafter_pipeline.config import SftConfig
from train_app.workers.sft.trainer import PATIENCE, sft_trainer
from train_app.workers.students import make_tiny
from transformers import TrainerCallback
model, tokenizer = make_tiny(0)
config = SftConfig(batch_size=8, max_steps=8, gpus={count}, device="cpu", eval_every=2)
class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == {stop_at}:
            control.should_save = control.should_training_stop = True
stop = [Stop()]
trainer = sft_trainer(model, tokenizer, make_rows(24), config, {out!r}, stop, validation=make_rows(7, seed=3))
if torch.distributed.is_initialized():
    group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    assert group.options._timeout == PATIENCE, "while the first plays dev episodes"
trainer.train(resume_from_checkpoint={resume})
if os.environ["RANK"] == "0":
    names = ("loss", "eval_loss", "num_tokens", "mean_token_accuracy")
    json.dump([[e[n] for n in names if n in e] for e in trainer.state.log_history], open({out!r} + ".json", "w"))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_what_one_does_also_when_they_resume_within_an_epoch(tmp_path):
    """Three steps are an epoch; stopped is after the fifth."""

    def train(name: str, count: int, stop_at: int = 0, resume: str | None = None) -> list[list[float]]:
        script, out = tmp_path / f"{name}.py", str(tmp_path / name)
        script.write_text(PROCESSES.format(here=str(HERE), count=count, out=out, stop_at=stop_at, resume=repr(resume)))
        with (tmp_path / "log").open("wb") as log:
            environment = {"OMP_NUM_THREADS": "1", "RANK": "0"}  # the rank of one alone
            group = WorkerGroup([sys.executable, str(script)], count, output=log, environment=environment)
        try:
            assert group.wait(250, 1) == 0, (tmp_path / "log").read_text()[-2000:]
        finally:
            group.stop(1)
        return json.loads(Path(out + ".json").read_text())

    one, two = train("one", 1), train("two", 2)
    assert len(one) == len(two) > 8
    train("stopped", 2, stop_at=5)
    resumed = train("resumed", 2, resume=str(tmp_path / "stopped" / "checkpoint-5"))
    for others in (two, resumed):
        for ours, theirs in zip(others, one, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
