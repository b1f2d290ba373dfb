"""What a job has used up: measured by its workers, added up over them, told with the job and its model."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from crafter_pipeline.contracts import Compute
from crafter_pipeline.errors import DataError
from train_app.accounting import Meter
from train_app.cards import model_card, model_document
from train_app.jobs import JobStore, Model
from train_app.leases import Lease, LeaseLost
from train_app.workers import job as worker_job

BURN = "import time\nwhile time.process_time() < 0.3: pass\n"


@pytest.fixture
def store(tmp_path):
    with_table = JobStore(tmp_path / "jobs.db")
    yield with_table
    with_table.close()


@pytest.fixture
def running(store):
    """A running job whose first worker has been started."""
    job = store.create_job("rl", "crafter-tiny", {})
    store.claim(job.id)
    store.begin_attempt(job.id)
    return job.id


def used(wall=1.0, cpu=1.0, gpu=0.0, tokens=0, episodes=None, turns=None):
    return Compute(wall, cpu, gpu, tokens, episodes, turns)


def test_a_meter_counts_its_process_and_the_children_it_started():
    meter = Meter()
    before = meter.read()
    child = subprocess.Popen([sys.executable, "-c", BURN + "input()"], stdin=subprocess.PIPE)
    while meter.read().cpu_seconds - before.cpu_seconds < 0.3:  # of a child that lives
        time.sleep(0.05)
    child.communicate(b"\n")
    after = meter.read()
    assert after.cpu_seconds - before.cpu_seconds >= 0.3, "and of one that was waited for"
    assert after.wall_seconds > before.wall_seconds > 0 and after.gpu_seconds == 0
    meter.gpus = 2
    told = meter.read()
    assert told.gpu_seconds == pytest.approx(2 * told.wall_seconds)


def test_seconds_are_those_of_all_workers_and_tokens_those_of_who_got_furthest(store, running):
    assert store.compute(running) is None
    first = Lease(store, running, 1)
    first.compute(used(5.0, 4.0, 5.0, 300, 8, 90))
    first.compute(used(10.0, 8.0, 10.0, 600, 16, 200))  # replaces what it told before
    first.compute(used(9.0, 2.0, 9.0), process=1)  # another process of it, on a GPU of its own
    store.begin_attempt(running)
    with pytest.raises(LeaseLost):
        first.compute(used())
    Lease(store, running, 2).compute(used(3.0, 1.5, 3.0, 500, 12, 150))  # from a checkpoint before its last word
    assert store.compute(running) == Compute(13.0, 11.5, 22.0, 600, 16, 200)


def test_a_job_its_model_and_its_card_tell_it(make_service):
    with make_service() as client:
        table = client.app.state.store
        job = table.create_job("sft", "crafter-tiny", {}, ready=False)
        table.set_compute(job.id, 1, used(61.0, 99.12345, tokens=4100))
        model = Model(f"fft:crafter-tiny:{job.id}", "crafter-tiny", job.id, "sft", "/m", "crafter-tiny", None, 0.0, {})
        table.add_model(model)
        told = {"wall_seconds": 61.0, "cpu_seconds": 99.123, "gpu_seconds": 0.0, "tokens": 4100}
        told |= {"episodes": None, "turns": None}
        assert client.get(f"/api/learning/jobs/{job.id}").json()["compute"] == told
        assert client.get(f"/api/learning/models/{model.id}").json()["compute"] == told
        assert model_document(table, model)["compute"] == told
        assert "## What it cost" in model_card(table, model) and "| tokens | 4100 |" in model_card(table, model)
        fresh = table.create_job("sft", "crafter-tiny", {}, ready=False)
        assert client.get(f"/api/learning/jobs/{fresh.id}").json()["compute"] is None


def test_a_job_that_fails_has_used_something_up(tmp_path, store):
    spec = {"config": {}, "training_file": "f", "training_file_sha256": "s"}
    job = store.create_job("sft", "crafter-tiny", spec)
    store.claim(job.id)
    store.begin_attempt(job.id)

    def fails(of):
        of.meter.tokens = 70
        raise DataError("row 3 is empty")

    assert worker_job.main(["--data-dir", str(tmp_path), "--job", job.id, "--attempt", "1"], "sft", fails) != 0
    told = store.compute(job.id)
    assert (store.get(job.id).error, told.tokens) == ("row 3 is empty", 70) and 0 < told.cpu_seconds


@pytest.mark.parametrize("told", [None, {}, "cheap", {"wall_seconds": "long", "cpu_seconds": 1}])
def test_what_other_backends_tell_may_be_anything(told):
    assert Compute.of(told) is None
