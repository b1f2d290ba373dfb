"""What every worker does around its training: report, publish once, fail with a sentence, leave when replaced."""

from __future__ import annotations

import fcntl
import json
from contextlib import closing
from functools import partial

import pytest

torch = pytest.importorskip("torch")

from peft import LoraConfig, get_peft_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import TrainerState  # noqa: E402

from crafter_pipeline.config import SftConfig  # noqa: E402
from crafter_pipeline.errors import DataError  # noqa: E402
from train_app.checkpoints import checkpoints_folder  # noqa: E402
from train_app.jobs import JobStore, model_folder  # noqa: E402
from train_app.leases import LeaseLost  # noqa: E402
from train_app.specs import SftSpec  # noqa: E402
from train_app.supervisor import worker_command  # noqa: E402
from train_app.worker_group import WorkerGroup  # noqa: E402
from train_app.workers import job as worker_job  # noqa: E402
from train_app.workers.checkpoints import write_model  # noqa: E402
from train_app.workers.reporter import Reporter, last_metrics  # noqa: E402
from train_app.workers.students import load_student, make_tiny  # noqa: E402


@pytest.fixture
def job(tmp_path):
    """A running LoRA job with its first worker."""
    store = JobStore.in_folder(tmp_path)
    store.add_file("/d.jsonl", purpose="fine-tune", filename="d.jsonl", bytes=1, rows=64, sha256="ab" * 32)
    spec = SftSpec(
        config=SftConfig(train_kind="lora", lora_rank=4),
        training_file="/d.jsonl",
        training_file_sha256="ab" * 32,
        not_applied={"compute.gpu_type": "no NVIDIA GPU on this machine"},
        aliases={"crafter-tiny": "other"},
    )
    made = store.create_job("sft", "crafter-tiny", spec.model_dump(mode="json"), tags={"team": "blue"})
    store.claim(made.id)
    yield worker_job.WorkerJob(store, tmp_path, made.id, store.begin_attempt(made.id).attempts)
    store.close()


def run_main(job, run):
    arguments = ["--data-dir", str(job.data_dir), "--job", job.id, "--attempt", str(job.lease.attempt)]
    return worker_job.main(arguments, "sft", run)


def test_a_model_is_published_with_its_record_and_its_card(job):
    _, tokenizer = make_tiny(0)
    model = get_peft_model(make_tiny(0)[0], LoraConfig(r=4, target_modules="all-linear"))
    model.base_model.model.name_or_path = "crafter-tiny:0"
    model.peft_config["default"].base_model_name_or_path = "crafter-tiny:0"
    job.publish(partial(write_model, model, tokenizer), {"loss": 0.25}, device="cpu", steps=40)

    (record,) = job.store.models()
    assert record.id == f"ft:crafter-tiny:{job.id}" == job.store.get(job.id).model_id
    assert (record.form, record.metrics, record.facts) == ("adapter", {"loss": 0.25}, {"device": "cpu", "steps": 40})
    assert record.config["lora_rank"] == 4 and len(record.tokenizer_sha256) == 64
    folder = model_folder(job.data_dir, job.id)
    assert json.loads((folder / "model.json").read_text())["dataset"]["rows"] == 64
    card = (folder / "card.md").read_text()
    for words in (
        "other stood in for",
        "d.jsonl, 64 rows",
        "compute.gpu_type",
        "team=blue",
        "an adapter of its parent",
    ):
        assert words in card, words
    load_student(str(folder))
    assert not list(folder.parent.glob("*.part"))


def test_equal_tokenizers_have_equal_hashes(tmp_path):
    for name, words in (("a", ()), ("b", ()), ("c", ["new"])):
        tokenizer = make_tiny(0)[1]
        tokenizer.add_tokens(list(words))
        tokenizer.save_pretrained(tmp_path / name)
    a, b, c = (worker_job.tokenizer_sha256(tmp_path / name) for name in "abc")
    assert a == b != c


def test_a_replaced_worker_publishes_nothing(job):
    job.store.begin_attempt(job.id)
    with pytest.raises(LeaseLost):
        job.publish(partial(write_model, *make_tiny(0)), {})
    assert job.store.models() == [] and not model_folder(job.data_dir, job.id).exists()
    assert run_main(job, lambda worker: worker.event("t", "m")) == 0, "it leaves quietly"
    assert job.store.get(job.id).status == "running"


def test_only_the_first_of_several_processes_tells(job, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    second = worker_job.WorkerJob(job.store, job.data_dir, job.id, job.lease.attempt)
    second.event("t", "m")
    second.metrics(1, {"loss": 1.0})
    second.publish(lambda part, folder: part.touch(), {})
    assert "t" not in [e.type for e in job.store.events(job.id)] and job.store.metrics(job.id) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DataError("row 3 is longer than sequence_length"), "row 3"),
        (OSError(28, "No space left on device"), "--data folder"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "micro_batch_size"),
        (MemoryError(), "micro_batch_size"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 5952 vs 5844"), "--data folder"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "micro_batch_size"),
    ],
)
def test_what_an_operator_can_act_on_fails_the_job_with_a_sentence(job, error, words):
    half = checkpoints_folder(job.folder) / "checkpoint-20"

    def run(_):
        half.mkdir(parents=True)
        raise error

    assert run_main(job, run) != 0
    ended = job.store.get(job.id)
    assert ended.status == "failed" and words in ended.error
    assert isinstance(error, DataError) or not half.exists(), "room for the table, where the disk is full"


def test_a_bug_is_the_supervisors(job):
    with pytest.raises(ZeroDivisionError):
        run_main(job, lambda _: 1 / 0)
    assert job.store.get(job.id).status == "running"


def test_only_numbers_that_say_something_are_told(job):
    logs = {"loss": 0.5, "epoch": 2.0, "eval_loss": 0.75, "grad_norm": float("nan")}
    end = {"train_loss": 0.6, "train_runtime": 3.0, "total_flos": 9.0, "epoch": 2.0}
    reporter, state = Reporter(job, "train."), TrainerState(global_step=4)
    for entry in (logs, end):
        reporter.on_log(None, state, None, logs=entry)
    assert {m["name"] if isinstance(m, dict) else m.name for m in job.store.metrics(job.id)} == {
        "train.loss",
        "validation.loss",
    }
    assert last_metrics([logs, end]) == {"loss": 0.5, "eval_loss": 0.75}


def test_a_cancelled_job_ends_at_the_next_check(job):
    job.store.request_cancel(job.id)
    assert run_main(job, lambda worker: worker.check()) == 0
    assert job.store.get(job.id).status == "cancelled"


def test_two_workers_never_write_into_one_folder(job, monkeypatch):
    monkeypatch.setattr(worker_job, "LOCK_SECONDS", 0.0)
    with (job.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_main(job, lambda _: pytest.fail("two at once")) != 0
    assert "Another process writes" in job.store.get(job.id).error


def run_worker(job, data_dir, processes):
    """A job's worker, from its start to its end."""
    with (data_dir / "worker.log").open("wb") as output:
        worker = WorkerGroup(worker_command(job, data_dir), processes, output=output, environment={})
    try:
        assert worker.wait(250, 1) == 0, (data_dir / "worker.log").read_text()[-2000:]
    finally:
        worker.stop(1)


@pytest.mark.slow
def test_a_process_per_core_ends_in_the_weights_of_one_process(tmp_path):
    """But for the order in which numbers are added."""
    words = ("tree", "water", "stone", "cow", "grass", "iron", "coal", "sand")
    rows = [
        {"messages": [{"role": "user", "content": f"{word}@1,{n}"}, {"role": "assistant", "content": "do"}]}
        for word in words
        for n in range(4)
    ]
    (tmp_path / "d.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = SftConfig(batch_size=8, max_steps=6, device="cpu", dtype="fp32", optimizer="muon", learning_rate=1e-3)
    spec = SftSpec(config=config, training_file=str(tmp_path / "d.jsonl"), training_file_sha256="sha")
    weights = []
    with closing(JobStore.in_folder(tmp_path)) as store:
        for processes in (1, 2):
            made = store.create_job("sft", "crafter-tiny", spec.model_dump(mode="json"))
            store.claim(made.id)
            run_worker(store.begin_attempt(made.id), tmp_path, processes)
            weights.append(load_file(model_folder(tmp_path, made.id) / "model.safetensors"))
        assert len(store.models()) == 2
    for name, one in weights[0].items():
        assert torch.allclose(one, weights[1][name], atol=2e-3), name
    assert any(not torch.equal(one, weights[1][name]) for name, one in weights[0].items())


@pytest.mark.slow
def test_two_processes_train_one_job_and_tell_once(tmp_path):
    row = {"messages": [{"role": "user", "content": "tree east"}, {"role": "assistant", "content": "do"}]}
    (tmp_path / "d.jsonl").write_text(f"{json.dumps(row)}\n" * 32)
    config = SftConfig(gpus=2, batch_size=8, micro_batch_size=4, max_steps=3, device="cpu", dtype="fp32")
    spec = SftSpec(config=config, training_file=str(tmp_path / "d.jsonl"), training_file_sha256="sha")
    with closing(JobStore.in_folder(tmp_path)) as store:
        made = store.create_job("sft", "crafter-tiny", spec.model_dump(mode="json"))
        store.claim(made.id)
        run_worker(store.begin_attempt(made.id), tmp_path, processes=2)
        assert store.get(made.id).status == "succeeded" and len(store.models()) == 1
        told = [e.data["step"] for e in store.events(made.id, types=("sft.progress",))]
        assert told == sorted(set(told)) and told[-1] == 3
