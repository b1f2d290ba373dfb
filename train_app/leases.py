"""A worker's right to write: its attempt's number.

The supervisor counts a job's workers. Only the last of them may write, and only while the job runs; whoever was
replaced, or whose job has ended, gets LeaseLost and leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from crafter_pipeline.contracts import Compute
from train_app.jobs import JobStore, Model


class LeaseLost(Exception):
    """Another worker has this job now, or it has ended."""


class Cancelled(Exception):
    """Somebody asked for the job's end."""


class Lease:
    """What one worker may do with its job. Every method raises LeaseLost, and has changed nothing then."""

    def __init__(self, store: JobStore, job_id: str, attempt: int) -> None:
        self._store, self._job_id, self.attempt = store, job_id, attempt

    def check(self) -> None:
        """Go on? Also raises Cancelled. A read: cheap enough for every step."""
        attempt, cancel_requested = self._store.holder(self._job_id)
        if attempt != self.attempt:
            raise self._lost()
        if cancel_requested:
            raise Cancelled

    def heartbeat(self) -> None:
        """The worker lives."""
        if not self._store.heartbeat(self._job_id, self.attempt):
            raise self._lost()

    def compute(self, used: Compute, process: int = 0) -> None:
        """What a process of this worker has used up so far, see `JobStore.set_compute`."""
        with self._held():
            self._store.set_compute(self._job_id, self.attempt, used, process)

    def event(self, kind: str, message: str, data: Mapping[str, Any] | None = None, level: str = "info") -> int:
        """Append to the job's events; returns the seq."""
        with self._held():
            return self._store.add_event(self._job_id, kind, message, data, level)

    def metrics(self, step: int, values: Mapping[str, float], phase: str = "train") -> None:
        """The numbers of a step, see `JobStore.add_metrics`."""
        with self._held():
            self._store.add_metrics(self._job_id, step, values, phase, self.attempt)

    def succeed(self, model: Model) -> None:
        """Register the model and end the job, both or neither. Also raises Cancelled."""
        with self._held():
            self.check()
            self._store.succeed(model)

    def fail(self, error: str) -> None:
        """The job failed, for this reason."""
        with self._held():
            self._store.set_status(self._job_id, "failed", error)

    def cancel(self) -> None:
        """The job was cancelled, and this worker has seen it."""
        with self._held():
            self._store.set_status(self._job_id, "cancelled")

    @contextmanager
    def _held(self) -> Iterator[None]:
        """One transaction in which nobody can replace this worker."""
        with self._store.transaction():
            if self._store.holder(self._job_id)[0] != self.attempt:
                raise self._lost()
            yield

    def _lost(self) -> LeaseLost:
        return LeaseLost(f"worker {self.attempt} of {self._job_id} was replaced, or the job has ended")
