"""Workers: success, crashes, cancelling, restarts of the API. The workers are stand-ins, the processes are real."""

import os
import signal
import subprocess
import sys
import time

from train_app.jobs import JobStore
from train_app.supervisor import INSTALL_HINT, Supervisor, end_left_over


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
        assert events_of(client, job["id"])[-1]["type"] == "sft.job.failed"


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


def test_a_job_left_running_goes_on_when_the_api_is_back(make_service, create_sft, wait_for):
    with make_service("wait") as client:
        job_id = create_sft(client)
        wait_for(client, job_id, "running")
    with make_service("succeed") as client:
        assert wait_for(client, job_id)["status"] == "succeeded"
        assert "job.requeued" in [e["type"] for e in events_of(client, job_id)]


def test_a_worker_that_falls_silent_is_replaced(tmp_path):
    store = JobStore.in_folder(tmp_path)
    job = store.create_job("sft", "b", {})
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    supervisor = Supervisor(
        store, tmp_path, command=lambda *_: command, restarts=0, poll_seconds=0.05, silent_seconds=0.3
    )
    supervisor.start()
    deadline = time.monotonic() + 10
    while not store.get(job.id).final and time.monotonic() < deadline:
        time.sleep(0.05)
    supervisor.stop()
    assert "stopped answering" in store.get(job.id).error
    store.close()


def test_a_worker_that_outlived_its_api_is_ended(tmp_path):
    store = JobStore.in_folder(tmp_path)
    job = store.create_job("sft", "b", {})
    code = "import time; time.sleep(60)"
    orphan = subprocess.Popen([sys.executable, "-c", code, job.id], start_new_session=True)
    bystander = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        for process in (orphan, bystander):
            store.worker_started(job.id, process.pid)
            end_left_over(store.get(job.id), grace_s=1.0)
        assert orphan.wait(5) == -signal.SIGTERM
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        store.close()


def test_without_torch_a_job_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    store = JobStore.in_folder(tmp_path)
    job = store.create_job("sft", "b", {})
    supervisor = Supervisor(store, tmp_path, poll_seconds=0.02)
    supervisor.start()
    deadline = time.monotonic() + 5
    while not store.get(job.id).final and time.monotonic() < deadline:
        time.sleep(0.02)
    supervisor.stop()
    assert store.get(job.id).error == INSTALL_HINT
    store.close()
