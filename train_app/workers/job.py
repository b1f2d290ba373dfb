"""What every worker does around its training: claim the job, report, publish the model, fail with a sentence."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from crafter_pipeline.errors import PipelineError
from crafter_pipeline.processes import exit_with_parent
from crafter_pipeline.settings import load_settings, reveal
from train_app.accounting import Meter
from train_app.adapters import is_adapter
from train_app.cards import write_card
from train_app.checkpoints import checkpoints_folder, remove_half_written
from train_app.endings import known_cause
from train_app.jobs import JobStore, Model, job_folder, model_folder
from train_app.leases import Cancelled, Lease, LeaseLost
from train_app.model_folders import whole_folder
from train_app.specs import RlSpec, SftSpec

HEARTBEAT_SECONDS = 5.0
LOCK_SECONDS = 30.0
PREFIX = {"fft": "fft", "lora": "ft", "qlora": "qft", "rl": "rl"}
"""Kind of training -> first part of the model's id."""


class WorkerJob:
    """One job as its worker sees it. Of several processes of one job the first alone tells and publishes.

    Every write raises LeaseLost once another worker has the job, or it has ended.
    """

    def __init__(self, store: JobStore, data_dir: Path, job_id: str, attempt: int) -> None:
        self.store, self.data_dir, self.id = store, data_dir, job_id
        self.lease = Lease(store, job_id, attempt)
        self.folder = job_folder(data_dir, job_id)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record = store.get(job_id)
        self.process = int(os.environ.get("RANK", "0"))
        """Of several of this job, counted from 0."""
        self.leads = self.process == 0
        self.meter = Meter()
        """Whoever trains tells it of GPUs, tokens and episodes."""
        self.task_app_key = reveal(load_settings().environment_api_key)
        self.published = False

    @cached_property
    def sft(self) -> SftSpec:
        """The spec of an SFT job."""
        return SftSpec.model_validate(self.record.spec)

    @cached_property
    def rl(self) -> RlSpec:
        """The spec of an RL job."""
        return RlSpec.model_validate(self.record.spec)

    def weights_of(self, name: str) -> str:
        """Where the weights of a base or trained model lie: a folder, a hub name or `crafter-tiny`."""
        return self.store.weights_of(name, self.record.spec.get("aliases") or {})

    def event(self, kind: str, message: str, level: str = "info", **data: Any) -> None:
        """Append to the job's events."""
        if self.leads:
            self.lease.event(kind, message, data, level)

    def warn(self, message: str) -> None:
        """A warning of the job; the report shows it."""
        self.event(f"{self.record.kind}.warning", message, level="warning")

    def metrics(self, step: int, values: Mapping[str, float], phase: str = "train") -> None:
        """The numbers of a step, counted from 1. NaN and infinities are left out."""
        if self.leads:
            self.lease.metrics(step, values, phase)

    def check(self) -> None:
        """Call now and then: raises Cancelled or LeaseLost when this worker should leave."""
        self.lease.check()

    def tell_compute(self) -> None:
        """What this process has used up so far, into the job table."""
        self.lease.compute(self.meter.read(), self.process)

    def publish(self, write: Callable[[Path, Path], None], metrics: dict[str, float], **facts: Any) -> None:
        """Save the model, register it under its id and end the job, once and for all.

        A kill at any moment leaves either a registered model and a job that succeeded, or neither.

        Args:
            write: Called as `write(part, folder)`: puts the model into `part`, which becomes `folder`.
            facts: How it was made, for its record and card: method, device, dtype, steps, …
        """
        if not self.leads:
            return
        self.check()
        if self.record.kind == "rl":
            variety, parent, dataset = "rl", self.rl.source, None
            config = self.rl.config.model_dump(mode="json")
        else:
            variety, parent = self.sft.config.train_kind, self.sft.config.base_model
            dataset, config = self.sft.training_file_sha256, self.sft.config.model_dump(mode="json")
        base = self.store.base_of(parent)
        folder = model_folder(self.data_dir, self.id)
        with whole_folder(folder) as part:
            write(part, folder)
            record = Model(
                id=f"{PREFIX[variety]}:{base}:{self.id}",
                base_model=base,
                job_id=self.id,
                kind=self.record.kind,
                path=str(folder),
                parent=parent,
                dataset_sha256=dataset,
                created_at=time.time(),
                metrics=metrics,
                config=config,
                tokenizer_sha256=tokenizer_sha256(part),
                form="adapter" if is_adapter(part) else "full",
                facts=facts,
            )
            self.tell_compute()
            write_card(self.store, record, part)
        self.lease.succeed(record)
        self.published = True


def tokenizer_sha256(folder: Path) -> str | None:
    """Of what makes a saved tokenizer's ids: its model and its chat template, not the words about them. None: the
    folder holds none."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja")
    digest = hashlib.sha256()
    found = [folder / name for name in names if (folder / name).exists()]
    for path in found:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest() if found else None


def main(argv: Sequence[str], kind: str, run: Callable[[WorkerJob], None]) -> int:
    """Run one job. Returns 0, or the exit code of what is wrong.

    A PipelineError fails the job with its sentence, and so do a full disk and too little memory, with the remedy. A
    bug raises, and the supervisor tries again.
    """
    parser = argparse.ArgumentParser(prog=f"train_app.workers.{kind}")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", type=int, required=True, help="which of the job's workers this is")
    options = parser.parse_args(argv)
    exit_with_parent()
    job = WorkerJob(JobStore.in_folder(options.data_dir), options.data_dir, options.job, options.attempt)
    try:
        return _outcome(job, run)
    except LeaseLost as e:
        print(f"{e}: this one leaves", file=sys.stderr)
        return 0


def _outcome(job: WorkerJob, run: Callable[[WorkerJob], None]) -> int:
    try:
        with _heartbeat(job), _alone(job):
            run(job)
    except Cancelled:
        job.tell_compute()
        job.lease.cancel()
    except PipelineError as e:
        job.tell_compute()
        job.lease.fail(str(e))
        return e.exit_code
    except LeaseLost:
        raise
    except Exception as e:
        cause = known_cause(f"{type(e).__name__}: {e}", job.folder)
        if not cause:
            raise
        if job.leads:
            remove_half_written(checkpoints_folder(job.folder))  # on a full disk the table needs the room
        job.tell_compute()
        job.lease.fail(f"{cause} ({type(e).__name__}: {e})")
        return PipelineError.exit_code
    return 0


@contextmanager
def _heartbeat(job: WorkerJob) -> Iterator[None]:
    """Tell the supervisor that the process lives, whatever its other threads do; end it when it was replaced."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            try:
                if job.leads:  # whose silence tells; the others could hide it
                    job.lease.heartbeat()
                job.tell_compute()
            except LeaseLost:
                if not job.published:  # else it is closing what it has open
                    os.kill(os.getpid(), signal.SIGTERM)
                return
            except Exception as e:  # a full disk, a locked table: the next beat may get through
                print(f"heartbeat: {e!r}", file=sys.stderr)

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


@contextmanager
def _alone(job: WorkerJob) -> Iterator[None]:
    """Write into the job's folder alone: the system lets go of the lock when a process dies, and not before."""
    if not job.leads:
        yield
        return
    with (job.folder / ".lock").open("w") as lock:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise PipelineError(f"Another process writes into {job.folder}: end it, then retry.") from None
                time.sleep(0.2)
        yield
