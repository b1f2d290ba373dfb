"""The scheduler of training jobs: a thread of the API process and one per running job, each with a worker process.

A job waits for as many slots as it uses GPUs, oldest first. A worker that dies or falls silent is started again from
its newest whole checkpoint, twice at most unless it got further meanwhile; then the job fails with the reason and the
last lines of its log. A cancelled job's worker gets SIGTERM, then SIGKILL. Jobs that a stopped API left running go
back into the queue.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from crafter_pipeline.model_names import is_mlp
from crafter_pipeline.processes import tail_of
from train_app.checkpoints import checkpoints_folder, remove_half_written, whole_checkpoints
from train_app.endings import ending, oom_kills, probable_cause
from train_app.jobs import Job, JobFilter, JobStore, Status, job_folder, model_folder
from train_app.slots import Slot, SlotPool, find_slots, job_environment, machine_cores
from train_app.worker_group import WorkerGroup, cpu_processes

RESTARTS = 2
POLL_SECONDS = 0.5
SILENT_SECONDS = 120.0
GRACE_SECONDS = 6.0
LINGER_SECONDS = 60.0
"""A worker may take so long to leave once its job has ended."""
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
"""For a process per core: a GPU that the slots do not know of is not to be trained on by all of them."""

log = logging.getLogger(__name__)
WorkerCommand = Callable[[Job, Path], Sequence[str]]


def slots_of(job: Job) -> int:
    """How many slots a job takes: one per GPU it asks for."""
    return int((job.spec.get("config") or {}).get("gpus") or 1)


def too_many_gpus(count: int, slots: SlotPool) -> str:
    """Why a job cannot run here."""
    return f"gpus: the job asks for {count} GPUs, this backend has {slots.gpus}. Ask for fewer."


def missing_package(base_model: str) -> str | None:
    """Why this installation cannot train such a model; None: it can, as far as its packages go."""
    module, name, extra = ("sklearn", "scikit-learn", "baseline") if is_mlp(base_model) else ("torch", "torch", "train")
    if importlib.util.find_spec(module) is not None:
        return None
    return (
        f"This installation cannot train {base_model}: {name} is missing. Run: pip install 'crafter-pipeline[{extra}]'"
    )


def worker_processes(job: Job, slots: SlotPool) -> int:
    """Processes of a job's worker. SFT has one per GPU that it asks for; RL has its further GPUs for sampling."""
    if job.kind == "sft" and slots_of(job) > 1:
        return slots_of(job)
    if slots.gpus or job.kind != "sft":
        return 1
    return cpu_processes(job.base_model, job.spec.get("config") or {}, max(1, machine_cores() // slots.count))


def worker_command(job: Job, data_dir: Path) -> list[str]:
    """The real worker: `python -m train_app.workers.<sft|rl|mlp> --data-dir DIR --job JOB --attempt N`."""
    worker = f"train_app.workers.{'mlp' if is_mlp(job.base_model) else job.kind}"
    options = ["--data-dir", str(data_dir), "--job", job.id, "--attempt", str(job.attempts)]
    return [sys.executable, "-m", worker, *options]


class Supervisor:
    """Runs queued jobs.

    Args:
        command: What to run for a job; the default checks first that what it needs is installed.
        slots: What jobs run on; default: this machine's, see `slots.find_slots`.
        restarts: Workers after the first that get no further, per job.
        poll_seconds: Between looks at queue, workers and cancel requests.
        silent_seconds: A worker without a heartbeat for this long is taken for dead.
        grace_seconds: Between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        store: JobStore,
        data_dir: Path,
        *,
        command: WorkerCommand | None = None,
        slots: Sequence[Slot] | None = None,
        restarts: int = RESTARTS,
        poll_seconds: float = POLL_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._store, self._data_dir, self._command = store, data_dir, command
        self.slots = SlotPool(find_slots() if slots is None else slots)
        self._restarts, self._poll_seconds = restarts, poll_seconds
        self._silent_seconds, self._grace_seconds = silent_seconds, grace_seconds
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Take up what a stopped API left, then watch the queue in a thread."""
        for job in self._store.list(JobFilter(status="running"), limit=1000):
            end_left_over(job)
            if self._store.requeue(job.id):
                self._store.add_event(job.id, "job.requeued", "the backend was restarted", level="warning")
        self._threads = [threading.Thread(target=self._dispatch, name="supervisor", daemon=True)]
        self._threads[0].start()

    def wake(self) -> None:
        """Something is in the queue."""
        self._wake.set()

    def stop(self) -> None:
        """Stop the workers, if there are any; their jobs stay `running` and go on when the API is back."""
        self._stopping.set()
        self._wake.set()
        while self._threads:
            self._threads.pop(0).join()

    # ------------------------------------------------------------------ the queue's thread

    def _dispatch(self) -> None:
        while not self._stopping.is_set():
            try:
                started = self._start_next()
            except Exception:  # a border: trouble with the table must not end the scheduling
                log.exception("supervisor")
                started = False
            if not started:
                self._wake.wait(self._poll_seconds)
                self._wake.clear()
            self._threads = [t for t in self._threads if t.is_alive()]

    def _start_next(self) -> bool:
        """Give the oldest waiting job its slots. Who needs many is not overtaken: it would wait for ever."""
        job = self._store.next_in_queue()
        if job is None:
            return False
        if self._command is None and (hint := missing_package(job.base_model)) is not None:
            return self._store.set_status(job.id, "failed", hint)
        if not self.slots.fits(slots_of(job)):  # made when the machine had more
            return self._store.set_status(job.id, "failed", too_many_gpus(slots_of(job), self.slots))
        slots = self.slots.take(slots_of(job))
        if slots is None:
            return False
        if not self._store.claim(job.id):  # cancelled meanwhile
            self.slots.give_back(slots)
            return True
        thread = threading.Thread(target=self._run, args=(job, slots), name=f"supervisor {job.id}", daemon=True)
        self._threads.append(thread)
        thread.start()
        return True

    # ------------------------------------------------------------------ a job's thread

    def _run(self, job: Job, slots: Sequence[Slot]) -> None:
        try:
            self._supervise(job, slots)
        except Exception as e:  # a border: one job's trouble must not touch the others
            log.exception("supervisor of %s", job.id)
            self._end(job, "failed", f"The supervisor failed: {e!r}")
        finally:
            self.slots.give_back(slots)
            self._wake.set()

    def _supervise(self, job: Job, slots: Sequence[Slot]) -> None:
        """One job to its end: worker, restarts, verdict."""
        folder = job_folder(self._data_dir, job.id)
        folder.mkdir(parents=True, exist_ok=True)
        log_file = folder / "worker.log"
        fruitless = 0
        while True:
            step, said = self._newest_step(job), log_file.stat().st_size if log_file.exists() else 0
            killed = oom_kills()
            code = self._run_worker(job, slots, log_file)
            now = self._store.get(job.id)
            if now.final or (code is None and self._stopping.is_set()):
                self._clear_away(now)
                return
            if now.cancel_requested:
                self._end(job, "cancelled")
                return
            lines = 15 * worker_processes(job, self.slots)
            words = tail_of(log_file, lines, since=said)  # of this worker, not of those before it
            remove_half_written(checkpoints_folder(folder))  # room, where the disk is full
            reached = self._newest_step(job)
            fruitless = 0 if reached > step else fruitless + 1
            cause = probable_cause(code, words, folder, oom_killed=oom_kills() > killed)
            what = f"The worker {ending(code)} {cause}".strip()
            if fruitless > self._restarts:
                self._end(job, "failed", f"{what} Log: {log_file}\n{words}".strip())
                return
            where = f"from the checkpoint of step {reached}" if reached else "from the beginning"
            times = f", {fruitless} of {self._restarts} that get no further" if fruitless else ""
            message = f"{what} Restart {where}{times}."
            self._store.add_event(job.id, "job.worker.restarted", message, {"log_tail": words}, "warning")
            log.warning("%s: %s", job.id, message)

    def _newest_step(self, job: Job) -> int:
        """Of the newest whole checkpoint; 0 without one."""
        found = whole_checkpoints(checkpoints_folder(job_folder(self._data_dir, job.id)))
        return found[-1].step if found else 0

    def _run_worker(self, job: Job, slots: Sequence[Slot], log_file: Path) -> int | None:
        """Start a worker and wait for its end. Returns its exit code, or None when it was stopped from here."""
        job = self._store.begin_attempt(job.id)
        command = list((self._command or worker_command)(job, self._data_dir))
        processes = worker_processes(job, self.slots)
        environment = job_environment(slots, self.slots.count)
        if processes > 1 and not self.slots.gpus:
            environment |= NO_GPU
        with log_file.open("ab") as output:
            worker = WorkerGroup(command, processes, output=output, environment=environment)
        try:
            self._store.set_pid(job.id, job.attempts, worker.pid)
            facts = {"attempt": job.attempts, "pid": worker.pid, "slots": [s.index for s in slots]}
            gpus = [s.gpu for s in slots if s.gpu is not None]
            where = f"GPU {', '.join(gpus)}" if gpus else f"slot {', '.join(str(s.index) for s in slots)}"
            message = f"worker {job.attempts} on {where}, log {log_file}"
            self._store.add_event(job.id, "job.worker.started", message, facts | {"gpus": gpus})
            while (code := worker.wait(self._poll_seconds, self._grace_seconds)) is None:
                if self._stopping.is_set() or self._gone_wrong(job.id):
                    return None
            return code
        finally:
            worker.stop(self._grace_seconds)

    def _gone_wrong(self, job_id: str) -> bool:
        job, now = self._store.get(job_id), time.time()
        if job.final:  # the worker closes what it has open
            return now - (job.finished_at or now) > LINGER_SECONDS
        return job.cancel_requested or now - (job.heartbeat_at or now) > self._silent_seconds

    def _end(self, job: Job, status: Status, error: str | None = None) -> None:
        """A final status. A full disk refuses it at first: tried until it is written, or the API stops."""
        self._clear_away(job)
        while True:
            try:
                self._store.set_status(job.id, status, error)
                return
            except Exception:
                log.exception("%s cannot be set to %s", job.id, status)
                if self._stopping.wait(max(1.0, self._poll_seconds)):
                    return

    def _clear_away(self, job: Job) -> None:
        """What is half-written goes, and what looks like a model though none was registered: a cancel may come between
        saving and registering."""
        remove_half_written(checkpoints_folder(job_folder(self._data_dir, job.id)))
        if self._store.get(job.id).model_id is None:
            folder = model_folder(self._data_dir, job.id)
            for path in (folder, folder.with_name(folder.name + ".part")):
                shutil.rmtree(path, ignore_errors=True)


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
