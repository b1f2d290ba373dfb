"""The job table: what API, supervisor and workers may rely on."""

import threading
import time

import pytest

from train_app.jobs import Job, JobStore, Model


@pytest.fixture
def store(tmp_path):
    store = JobStore(tmp_path / "jobs.db")
    yield store
    store.close()


def make_model(job: Job, kind: str = "sft", prefix: str = "fft") -> Model:
    model_id = f"{prefix}:{job.base_model}:{job.id}"
    return Model(model_id, job.base_model, job.id, kind, f"/models/{job.id}", job.base_model, None, time.time(), {})


def test_ids_have_the_wires_form(store):
    job = store.create_job("sft", "crafter-tiny", {})
    assert job.id.startswith("job_") and len(job.id) == 20
    file = store.add_file("/x", purpose="fine-tune", filename="x", bytes=1, rows=1, sha256="s")
    assert file.id.startswith("file_") and len(file.id) == 21
    assert store.get_file(file.id) == file


def test_an_equal_key_returns_the_job_it_made_until_that_one_failed(store):
    first = store.create_job("sft", "b", {}, idempotency_key="k")
    assert store.create_job("sft", "b", {}, idempotency_key="k").id == first.id
    store.set_status(first.id, "failed", "no")
    second = store.create_job("sft", "b", {}, idempotency_key="k")
    assert second.id != first.id
    store.request_cancel(second.id)
    assert store.create_job("sft", "b", {}, idempotency_key="k").id not in (first.id, second.id)


def test_jobs_are_claimed_oldest_first_and_only_once_started(store):
    waiting = store.create_job("sft", "b", {}, ready=False)
    ready = store.create_job("rl", "b", {})
    assert store.claim().id == ready.id
    assert store.claim() is None
    store.start(waiting.id)
    assert store.claim().id == waiting.id


def test_a_final_status_stays(store):
    job = store.create_job("sft", "b", {})
    assert store.set_status(job.id, "cancelled")
    assert not store.set_status(job.id, "succeeded")
    assert not store.finish(job.id, "m")
    assert store.get(job.id).status == "cancelled"


def test_finishing_names_the_model_and_tells_every_name_of_success(store):
    job = store.create_job("sft", "b", {})
    store.finish(job.id, "fft:b:x")
    assert store.get(job.id).model_id == "fft:b:x"
    events = store.events(job.id)
    assert [e.type for e in events] == ["job.created", "sft.completed", "sft.job.completed"]
    assert events[-1].data["fine_tuned_model"] == "fft:b:x"


def test_seq_counts_from_one_per_job_also_with_many_writers(store, tmp_path):
    job = store.create_job("sft", "b", {})
    other = JobStore(tmp_path / "jobs.db")

    def write(s):
        for i in range(25):
            s.add_event(job.id, "t", str(i))

    threads = [threading.Thread(target=write, args=(s,)) for s in (store, store, other)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    other.close()
    assert [e.seq for e in store.events(job.id, limit=1000)] == list(range(1, 77))
    assert [e.seq for e in store.events(job.id, since_seq=70, limit=3)] == [71, 72, 73]


def test_a_step_trained_again_replaces_its_numbers(store):
    job = store.create_job("sft", "b", {})
    store.add_metric(job.id, "loss", 1, 2.0)
    store.add_metric(job.id, "loss", 1, 3.0)
    assert [(m.step, m.value) for m in store.metrics(job.id)] == [(1, 3.0)]


def test_a_page_of_metrics_never_ends_within_a_step(store):
    job = store.create_job("sft", "b", {})
    for step in (1, 2, 3):
        store.add_metrics(job.id, step, {"a": 1.0, "b": 2.0, "nan": float("nan")})
    assert [(m.step, m.name) for m in store.metrics(job.id, limit=3)] == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    assert [m.step for m in store.metrics(job.id, name="a", after_step=1, limit=1)] == [2]


def test_a_model_is_found_by_every_form_of_its_name(store):
    job = store.create_job("sft", "Qwen/Qwen3-0.6B", {})
    model = make_model(job)
    store.add_model(model)
    for name in (model.id, job.id, f"ft:{job.id}", f"ft:Qwen/Qwen3-0.6B:{job.id}", "latest:sft"):
        assert store.resolve_model(name) == model, name
    for name in ("latest:rl", f"fft:other:{job.id}", "Qwen/Qwen3-0.6B", "ft:job_0000000000000000", f"x:{job.id}"):
        assert store.resolve_model(name) is None, name
    assert store.get(job.id).model_id == model.id


def test_latest_goes_by_kind_and_time(store):
    sft, newer, rl = (store.create_job(k, "b", {}) for k in ("sft", "sft", "rl"))
    for job in (sft, newer):
        store.add_model(make_model(job))
    store.add_model(make_model(rl, "rl", "rl"))
    assert store.resolve_model("latest:sft").job_id == newer.id
    assert store.resolve_model("latest:rl").job_id == rl.id


def test_weights_come_from_the_model_the_alias_or_the_name(store):
    job = store.create_job("sft", "b", {})
    store.add_model(make_model(job))
    assert store.weights_of(job.id) == f"/models/{job.id}"
    assert store.base_of(job.id) == "b"
    assert store.weights_of("Qwen", {"Qwen": "crafter-tiny"}) == "crafter-tiny"
    assert store.weights_of("Qwen", {"Qwen": "latest:sft"}) == f"/models/{job.id}"
    assert store.weights_of("hub/name") == store.base_of("hub/name") == "hub/name"


def test_a_waiting_job_is_cancelled_at_once(store):
    job = store.create_job("rl", "b", {})
    assert store.request_cancel(job.id).status == "cancelled"
    assert store.claim() is None
    assert store.events(job.id)[-1].type == "rl.job.cancelled"
