"""Workers: success, crashes, cancelling, restarts of the API. The workers are stand-ins, the processes are real."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from train_app.jobs import JobFilter, JobStore, model_folder
from train_app.slots import SLOTS_VARIABLE, Slot, SlotPool, find_slots, job_environment
from train_app.supervisor import (
    GRACE_SECONDS,
    POLL_SECONDS,
    Supervisor,
    end_left_over,
    missing_package,
    worker_command,
    worker_processes,
)
from train_app.worker_group import cpu_processes

FAKE_WORKER = Path(__file__).parents[1] / "standins" / "fake_worker.py"
ONE_SLOT = (Slot(0, None),)


@pytest.fixture
def wait_until_there():
    def wait(there):
        deadline = time.monotonic() + 15
        while not there():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    return wait


@contextmanager
def supervised(folder, mode, *, jobs=1, spec=None, slots=ONE_SLOT, **options):
    """A running supervisor with jobs; mode None: the real command."""

    def command(job, data_dir):
        words = ["--data-dir", str(data_dir), "--job", job.id, "--attempt", str(job.attempts)]
        return [sys.executable, str(FAKE_WORKER), mode, *words]

    store = JobStore.in_folder(folder)
    made = [store.create_job("sft", "b", spec or {}) for _ in range(jobs)]
    supervisor = Supervisor(
        store, folder, command=None if mode is None else command, slots=slots, poll_seconds=0.05, **options
    )
    supervisor.start()
    try:
        yield store, *made
    finally:
        supervisor.stop()
        store.close()


def events_of(client, job_id):
    return client.get(f"/api/learning/jobs/{job_id}/events").json()["events"]


def test_a_job_runs_once_started_and_leaves_a_model(make_service, create_sft, wait_for):
    with make_service() as client:
        job_id = create_sft(client, start=False)
        time.sleep(0.2)
        assert client.get(f"/api/learning/jobs/{job_id}").json()["status"] == "queued"
        client.post(f"/api/learning/jobs/{job_id}/start")
        job = wait_for(client, job_id)
        assert job["status"] == "succeeded" and job["fine_tuned_model"] == f"fft:crafter-tiny:{job_id}"
        types = [e["type"] for e in events_of(client, job_id)]
        assert types[0] == "job.created" and {"sft.completed", "sft.job.completed"} <= set(types)


def test_a_crash_is_followed_by_a_restart_from_the_checkpoint(make_service, create_sft, wait_for):
    with make_service("crash-once") as client:
        job = wait_for(client, create_sft(client))
        assert job["status"] == "succeeded" and job["attempts"] == 2
        assert "job.worker.restarted" in [e["type"] for e in events_of(client, job["id"])]


def test_after_two_restarts_the_job_fails_with_the_workers_last_words(make_service, create_sft, wait_for):
    with make_service("crash") as client:
        job = wait_for(client, create_sft(client))
        assert job["status"] == "failed" and job["attempts"] == 3
        assert "RuntimeError: the GPU fell out" in job["error"] and "exit code 1" in job["error"]
        assert "worker.log" in job["error"]
        assert job["error"].count("the GPU fell out") == 2, "as raised in one traceback, of the last worker alone"
        assert events_of(client, job["id"])[-1]["type"] == "sft.job.failed"


def test_restarts_that_get_further_do_not_count(make_service, create_sft, wait_for):
    with make_service("advance") as client:
        job = wait_for(client, create_sft(client))
        assert (job["status"], job["attempts"]) == ("succeeded", 6)
        said = [e["message"] for e in events_of(client, job["id"]) if e["type"] == "job.worker.restarted"]
        assert "from the checkpoint of step 5" in said[-1]


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("killed", ("SIGKILL", "or the system was out of memory", "micro_batch_size")),
        ("full", ("is full", "--data folder")),
    ],
)
def test_a_death_with_a_known_cause_says_the_remedy(make_service, create_sft, wait_for, tmp_path, mode, words):
    with make_service(mode) as client:
        job = wait_for(client, create_sft(client))
        assert job["status"] == "failed" and all(word in job["error"] for word in words), job["error"]
        assert not list((tmp_path / "data" / "jobs" / job["id"]).glob("checkpoints/*")), "nothing half-written stays"


def test_a_job_that_its_worker_failed_is_not_tried_again(make_service, create_sft, wait_for):
    with make_service("refuse") as client:
        job = wait_for(client, create_sft(client))
        assert (job["error"], job["attempts"]) == ("row 3 is longer than sequence_length", 1)


def test_cancelling_stops_the_worker(make_service, create_sft, wait_for):
    with make_service("wait") as client:
        job_id = create_sft(client)
        wait_for(client, job_id, "running")
        while "waiting" not in [e["type"] for e in events_of(client, job_id)]:
            time.sleep(0.02)
        pid = client.app.state.store.get(job_id).pid
        client.post(f"/api/learning/jobs/{job_id}/cancel")
        assert wait_for(client, job_id)["status"] == "cancelled"
        assert not os.path.exists(f"/proc/{pid}") or sys.platform != "linux"


def test_a_worker_that_is_deaf_is_killed(tmp_path, wait_until_there):
    with supervised(tmp_path, "deaf", grace_seconds=0.3) as (store, job):
        wait_until_there(lambda: "waiting" in [e.type for e in store.events(job.id)])
        store.request_cancel(job.id)
        wait_until_there(lambda: store.get(job.id).final)
        assert store.get(job.id).status == "cancelled"
    assert GRACE_SECONDS + POLL_SECONDS < 10, "cancelling takes less than ten seconds"


def test_a_cancelled_job_leaves_nothing_that_looks_like_a_model(tmp_path, wait_until_there):
    with supervised(tmp_path, "late") as (store, job):
        wait_until_there(lambda: "waiting" in [e.type for e in store.events(job.id)])
        assert model_folder(tmp_path, job.id).is_dir()
        store.request_cancel(job.id)
        wait_until_there(lambda: store.get(job.id).final)
        assert not model_folder(tmp_path, job.id).exists()


def test_jobs_run_side_by_side_as_far_as_slots_go(tmp_path, wait_until_there):
    slots = [Slot(0, "0"), Slot(1, "1")]
    with supervised(tmp_path, "wait", slots=slots, jobs=3) as (store, *jobs):
        wait_until_there(lambda: len(store.list(JobFilter(status="running"))) == 2)
        time.sleep(0.3)
        assert [store.get(job.id).status for job in jobs] == ["running", "running", "queued"]
        wait_until_there(lambda: all("waiting" in [e.type for e in store.events(job.id)] for job in jobs[:2]))
        started = [e.data for job in jobs for e in store.events(job.id) if e.type == "job.worker.started"]
        assert [(s["slots"], s["gpus"]) for s in started] == [([0], ["0"]), ([1], ["1"])]
        store.request_cancel(jobs[0].id)
        wait_until_there(lambda: store.get(jobs[2].id).status == "running")


def test_a_job_of_more_gpus_than_there_are_fails_with_both_numbers(tmp_path, wait_until_there):
    with supervised(tmp_path, "succeed", spec={"config": {"gpus": 4}}) as (store, job):
        wait_until_there(lambda: store.get(job.id).final)
        assert "4 GPUs, this backend has 0" in store.get(job.id).error


def test_several_gpus_of_one_job_are_different_ones():
    pool = SlotPool([Slot(i, str(i % 2)) for i in range(4)])
    assert pool.fits(2) and not pool.fits(3)
    (first,) = pool.take(1)
    pair = pool.take(2)
    assert {slot.gpu for slot in pair} == {"0", "1"} and first not in pair
    told = {"CUDA_VISIBLE_DEVICES": ",".join(slot.gpu for slot in pair), SLOTS_VARIABLE: "4"}
    assert job_environment(pair, pool.count) == told
    assert pool.take(2) is None
    pool.give_back((first, *pair))
    assert [slot.index for slot in pool.take(2)] == [0, 1]


@pytest.mark.parametrize(
    ("answer", "visible", "count", "gpus"),
    [
        ("0, GPU-a\n1, GPU-b\n", None, None, ["0", "1"]),
        ("0, GPU-a\n1, GPU-b\n", "1", None, ["1"]),
        ("0, GPU-a\n1, GPU-b\n", "GPU-b", None, ["GPU-b"]),
        ("0, GPU-a\n", None, 2, ["0", "0"]),
        ("", None, None, [None]),
        ("", None, 3, [None, None, None]),
    ],
)
def test_slots_are_the_gpus_that_the_driver_names(monkeypatch, tmp_path, answer, visible, count, gpus):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{answer}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [slot.gpu for slot in find_slots(count)] == gpus


def test_the_command_names_the_attempt_and_sft_has_a_process_per_gpu(tmp_path):
    store = JobStore.in_folder(tmp_path)
    one, two, rl = (
        store.begin_attempt(store.create_job(kind, "b", {"config": {"gpus": gpus}}).id)
        for kind, gpus in (("sft", 1), ("sft", 2), ("rl", 2))
    )
    store.close()
    assert worker_command(one, tmp_path)[1:] == [
        *("-m", "train_app.workers.sft", "--data-dir", str(tmp_path), "--job", one.id, "--attempt", "1")
    ]
    assert worker_command(rl, tmp_path)[2] == "train_app.workers.rl"
    gpus = SlotPool([Slot(n, str(n)) for n in range(2)])
    assert [worker_processes(job, gpus) for job in (one, two, rl)] == [1, 2, 1]


@pytest.mark.parametrize(
    ("base", "config", "cores", "count"),
    [
        ("crafter-tiny", {}, 2, 2),
        ("fft:crafter-tiny-128x3:job_1", {"device": "cpu"}, 2, 2),
        ("crafter-tiny", {}, 1, 1),
        ("crafter-tiny", {}, 16, 4),
        ("crafter-tiny", {"batch_size": 9}, 4, 3),
        ("crafter-tiny", {"batch_size": 12, "micro_batch_size": 4}, 2, 1),
        ("crafter-tiny", {"max_steps": 30}, 2, 1),
        ("crafter-tiny", {"max_steps": None}, 2, 1),
        ("crafter-tiny", {"device": "mps"}, 2, 1),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", {}, 2, 1),
    ],
)
def test_a_tiny_student_is_trained_by_a_process_per_core(base, config, cores, count):
    """Unless it is over at once, or the rows cannot be split; larger models have use for threads."""
    config = {"batch_size": 32, "micro_batch_size": None, "max_steps": 1000, "device": "auto", "gpus": 1} | config
    assert cpu_processes(base, config, cores) == count


def test_more_slots_than_cores_leave_a_job_its_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr("train_app.supervisor.machine_cores", lambda: 2)
    config = {"batch_size": 32, "max_steps": 1000, "device": "auto", "gpus": 1}
    with closing(JobStore.in_folder(tmp_path)) as store:
        sft, rl = (store.create_job(kind, "crafter-tiny", {"config": config}) for kind in ("sft", "rl"))
    one, four = (SlotPool([Slot(n, None) for n in range(count)]) for count in (1, 4))
    assert [worker_processes(sft, one), worker_processes(rl, one), worker_processes(sft, four)] == [2, 1, 1]


def test_a_job_left_running_goes_on_when_the_api_is_back(make_service, create_sft, wait_for):
    with make_service("wait") as client:
        job_id = create_sft(client)
        wait_for(client, job_id, "running")
    with make_service("succeed") as client:
        assert wait_for(client, job_id)["status"] == "succeeded"
        assert "job.requeued" in [e["type"] for e in events_of(client, job_id)]


def test_a_worker_that_falls_silent_is_replaced(tmp_path, wait_until_there):
    options = dict(restarts=0, silent_seconds=0.3, grace_seconds=0.3)
    with supervised(tmp_path, "deaf", **options) as (store, job):
        wait_until_there(lambda: store.get(job.id).final)
        assert "stopped answering" in store.get(job.id).error


def test_a_worker_that_outlived_its_api_is_ended(tmp_path):
    store = JobStore.in_folder(tmp_path)
    job = store.create_job("sft", "b", {})
    code = "import time; time.sleep(60)"
    orphan = subprocess.Popen([sys.executable, "-c", code, job.id], start_new_session=True)
    bystander = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        for process in (orphan, bystander):
            store.set_pid(job.id, store.begin_attempt(job.id).attempts, process.pid)
            end_left_over(store.get(job.id), grace_s=1.0)
        assert orphan.wait(5) == -signal.SIGTERM
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        store.close()


def test_without_torch_a_job_says_what_to_install(tmp_path, monkeypatch, wait_until_there):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with supervised(tmp_path, None) as (store, job):
        wait_until_there(lambda: store.get(job.id).final)
        assert "torch is missing. Run: pip install 'crafter-pipeline[train]'" in store.get(job.id).error


def test_each_kind_of_model_names_its_own_packages(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sklearn" else name)
    assert missing_package("crafter-tiny") is None
    hint = missing_package("crafter-mlp")
    assert "scikit-learn is missing" in hint and "'crafter-pipeline[baseline]'" in hint
