"""The scheduler of training jobs: a thread of the API process, one worker process at a time.

A worker that dies is started again from its newest checkpoint, twice at most; then the job fails with the last lines
of its log. A cancelled job's worker gets SIGTERM. Jobs that a stopped API left running go back into the queue.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from crafter_pipeline.processes import PARENT_VARIABLE, stop_process, tail_of
from train_app.jobs import Job, JobStore, job_folder

RESTARTS = 2
POLL_SECONDS = 0.5
SILENT_SECONDS = 900.0
GRACE_SECONDS = 15.0
INSTALL_HINT = "This installation cannot train: torch is missing. Run: pip install 'crafter-pipeline[train]'"

log = logging.getLogger(__name__)
WorkerCommand = Callable[[Job, Path], Sequence[str]]


def worker_command(job: Job, data_dir: Path) -> list[str]:
    """The real worker: `python -m train_app.workers.<sft|rl> --data-dir DIR --job JOB`."""
    return [sys.executable, "-m", f"train_app.workers.{job.kind}", "--data-dir", str(data_dir), "--job", job.id]


class Supervisor:
    """Runs queued jobs, oldest first.

    Args:
        command: What to run for a job; the default checks first that torch is installed.
        restarts: Workers after the first, per job.
        poll_seconds: Between looks at queue, worker and cancel requests.
        silent_seconds: A worker without a heartbeat for this long is taken for dead.
    """

    def __init__(
        self,
        store: JobStore,
        data_dir: Path,
        *,
        command: WorkerCommand | None = None,
        restarts: int = RESTARTS,
        poll_seconds: float = POLL_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self._store, self._data_dir, self._command = store, data_dir, command
        self._restarts, self._poll_seconds, self._silent_seconds = restarts, poll_seconds, silent_seconds
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take up what a stopped API left, then watch the queue in a thread."""
        for job in self._store.list(status="running", limit=1000):
            end_left_over(job)
            if self._store.requeue(job.id):
                self._store.add_event(job.id, "job.requeued", "the backend was restarted", level="warning")
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Something is in the queue, or is to be cancelled."""
        self._wake.set()

    def stop(self) -> None:
        """Stop the worker, if there is one; its job stays `running` and goes on when the API is back."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    # ------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            job = None
            try:
                job = self._store.claim()
                if job is not None:
                    self._supervise(job)
                    continue
            except Exception as e:  # a border: one job's trouble must not end the scheduling of the others
                log.exception("supervisor")
                if job is not None:
                    self._store.set_status(job.id, "failed", f"The supervisor failed: {e!r}")
            self._pause()

    def _pause(self) -> None:
        self._wake.wait(self._poll_seconds)
        self._wake.clear()

    def _supervise(self, job: Job) -> None:
        """One job to its end: worker, restarts, verdict."""
        if self._command is None and importlib.util.find_spec("torch") is None:
            self._store.set_status(job.id, "failed", INSTALL_HINT)
            return
        folder = job_folder(self._data_dir, job.id)
        folder.mkdir(parents=True, exist_ok=True)
        log_file = folder / "worker.log"
        crashes = 0
        while True:
            code = self._run_worker(job, log_file)
            now = self._store.get(job.id)
            if now.final or (code is None and self._stopping.is_set()):
                return
            if now.cancel_requested:
                self._store.set_status(job.id, "cancelled")
                return
            what = "stopped answering" if code is None else _ending(code)
            words = tail_of(log_file)
            if crashes >= self._restarts:
                self._store.set_status(job.id, "failed", f"The worker {what}. Log: {log_file}\n{words}".strip())
                return
            crashes += 1
            message = f"The worker {what}; restart {crashes} of {self._restarts} from the newest checkpoint"
            self._store.add_event(job.id, "job.worker.restarted", message, {"log_tail": words}, "warning")
            log.warning("%s: %s", job.id, message)

    def _run_worker(self, job: Job, log_file: Path) -> int | None:
        """Start a worker and wait for its end. Returns its exit code, or None when it was stopped from here."""
        command = list((self._command or worker_command)(job, self._data_dir))
        with log_file.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
                start_new_session=True,
            )
        attempt = self._store.worker_started(job.id, process.pid)
        facts = {"attempt": attempt, "pid": process.pid}
        self._store.add_event(job.id, "job.worker.started", f"worker {attempt}, log {log_file}", facts)
        try:
            while process.poll() is None:
                if self._stopping.is_set() or self._gone_wrong(job.id):
                    stop_process(process, GRACE_SECONDS)
                    return None
                self._pause_for(process)
            return process.returncode
        finally:
            stop_process(process, GRACE_SECONDS)

    def _pause_for(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the worker's end, a wake-up or the next look, whichever comes first."""
        deadline = time.monotonic() + self._poll_seconds
        while time.monotonic() < deadline and process.poll() is None:
            if self._wake.wait(min(0.05, self._poll_seconds)):
                self._wake.clear()
                return

    def _gone_wrong(self, job_id: str) -> bool:
        job = self._store.get(job_id)
        silent = time.time() - (job.heartbeat_at or time.time()) > self._silent_seconds
        return job.cancel_requested or silent


def end_left_over(job: Job, grace_s: float = 5.0) -> None:
    """End a worker that outlived its API: two of them must never write into one folder.

    A pid may have been given to somebody else since, so its command line has to name the job.
    """
    if job.pid is None:
        return
    deadline = time.monotonic() + grace_s
    for sig in (signal.SIGTERM, signal.SIGKILL):
        while job.id in _command_line(job.pid):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(job.pid, sig)
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)


def _command_line(pid: int) -> str:
    """Of a live process; empty when there is none, or none can be read."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        pass
    try:
        command = ["ps", "-o", "command=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}, without a model"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
