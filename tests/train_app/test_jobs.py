"""The job table: what API, supervisor and workers may rely on."""

import sqlite3
import threading
import time
from contextlib import closing

import pytest

from crafter_pipeline.errors import DataError
from train_app.job_schema import MIGRATIONS
from train_app.jobs import Job, JobStore, Model
from train_app.leases import Cancelled, Lease, LeaseLost


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
    assert store.next_in_queue().id == ready.id
    assert store.claim(ready.id) and not store.claim(ready.id) and not store.claim(waiting.id)
    assert store.next_in_queue() is None
    store.start(waiting.id)
    assert store.claim(waiting.id)


def test_a_final_status_stays(store):
    job = store.create_job("sft", "b", {})
    assert store.set_status(job.id, "cancelled")
    assert not store.set_status(job.id, "succeeded")
    assert not store.succeed(make_model(job))
    assert store.get(job.id).status == "cancelled" and store.models() == []


def test_finishing_names_the_model_and_tells_every_name_of_success(store):
    job = store.create_job("sft", "b", {})
    store.succeed(make_model(job))
    model_id = f"fft:b:{job.id}"
    assert store.get(job.id).model_id == model_id
    events = store.events(job.id)
    assert [e.type for e in events] == ["job.created", "sft.completed", "sft.job.completed"]
    assert events[-1].data["fine_tuned_model"] == model_id


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
    store.add_metrics(job.id, 1, {"loss": 2.0})
    store.add_metrics(job.id, 2, {"loss": 1.5})
    store.add_metrics(job.id, 2, {"loss": 1.0}, attempt=2)
    assert [(m.step, m.value) for m in store.metrics(job.id)] == [(1, 2.0), (2, 1.0)]
    assert [m.step for m in store.metrics(job.id, attempt=2)] == [2]


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
    assert store.next_in_queue() is None
    assert store.events(job.id)[-1].type == "rl.job.cancelled"


def test_reading_never_waits_for_a_write(store, tmp_path):
    job = store.create_job("sft", "b", {})
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writer = threading.Thread(target=store.add_event, args=(job.id, "t", "m"))
        writer.start()
        time.sleep(0.1)
        started = time.monotonic()
        assert store.get(job.id) == job and len(store.events(job.id)) == 1
        assert time.monotonic() - started < 15.0
        other.execute("ROLLBACK")
    writer.join()
    assert len(store.events(job.id)) == 2


# --------------------------------------------------------------------------- leases


def lease_of(store: JobStore, job: Job) -> Lease:
    if job.status == "queued":
        store.claim(job.id)
    return Lease(store, job.id, store.begin_attempt(job.id).attempts)


def test_a_worker_that_was_replaced_writes_nothing(store):
    job = store.create_job("sft", "b", {})
    old = lease_of(store, job)
    new = lease_of(store, store.get(job.id))
    before = (store.get(job.id), store.events(job.id))
    for write in (
        old.check,
        old.heartbeat,
        lambda: old.event("t", "m"),
        lambda: old.metrics(1, {"loss": 1.0}),
        lambda: old.succeed(make_model(job)),
        lambda: old.fail("no"),
        old.cancel,
    ):
        with pytest.raises(LeaseLost):
            write()
    assert (store.get(job.id), store.events(job.id)) == before
    assert store.metrics(job.id) == store.models() == []
    new.metrics(1, {"loss": 1.0})
    new.succeed(make_model(job))
    assert store.get(job.id).status == "succeeded" and store.metrics(job.id)[0].attempt == 2


def test_a_model_and_the_end_of_its_job_are_one_write(store, monkeypatch):
    job = store.create_job("sft", "b", {})
    lease = lease_of(store, job)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "set_status", killed)
        lease.succeed(make_model(job))
    assert store.models() == [] and store.get(job.id).status == "running" and store.get(job.id).model_id is None
    lease.succeed(make_model(job))
    with pytest.raises(LeaseLost):
        lease.succeed(make_model(job))
    assert len(store.models()) == 1


def test_a_job_has_one_model(store):
    job = store.create_job("sft", "b", {})
    store.add_model(make_model(job))
    with pytest.raises(sqlite3.IntegrityError):
        store.add_model(make_model(job, prefix="ft"))


def test_a_cancelled_job_gets_no_model(store):
    job = store.create_job("sft", "b", {})
    lease = lease_of(store, job)
    store.request_cancel(job.id)
    with pytest.raises(Cancelled):
        lease.check()
    with pytest.raises(Cancelled):
        lease.succeed(make_model(job))
    lease.cancel()
    assert store.get(job.id).status == "cancelled" and store.models() == []


def test_a_worker_of_a_job_that_went_back_into_the_queue_may_not_write(store):
    job = store.create_job("sft", "b", {})
    lease = lease_of(store, job)
    store.requeue(job.id)
    with pytest.raises(LeaseLost):
        lease.heartbeat()


# --------------------------------------------------------------------------- older and newer tables


def test_a_table_of_before_versions_keeps_its_models(tmp_path):
    path = tmp_path / "jobs.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(MIGRATIONS[0])
        db.execute(
            "INSERT INTO jobs (id, kind, name, base_model, spec, request, status, ready, created_at, updated_at) "
            "VALUES ('job_0123456789abcdef', 'sft', '', 'b', '{}', '{}', 'succeeded', 1, 1.0, 1.0)"
        )
        db.execute(
            "INSERT INTO models VALUES ('fft:b:job_0123456789abcdef', 'b', 'job_0123456789abcdef', 'sft', '/m', 'b', "
            "'sha', 1.0, '{\"loss\": 0.5}')"
        )
        db.execute("INSERT INTO metrics VALUES ('job_0123456789abcdef', 1, 'loss', 'train', 0.5, 1.0)")
        db.commit()
    for _ in range(2):
        with closing(JobStore(path)) as store:
            model = store.get_model("fft:b:job_0123456789abcdef")
            assert (model.metrics, model.form, model.config) == ({"loss": 0.5}, "full", {})
            assert store.metrics("job_0123456789abcdef")[0].attempt == 1


def test_a_table_of_a_newer_program_is_refused(tmp_path):
    JobStore(tmp_path / "jobs.db").close()
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(DataError, match="version 99"):
        JobStore(tmp_path / "jobs.db")
