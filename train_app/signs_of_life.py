"""Signs of life of jobs that have nothing to tell.

A published client gives a job up after five polls, ten seconds, without a new event, and the first step of a job may
take longer. So who asks for the events behind the last one of a silent job gets one more. A job keeps its newest sign
alone: their number does not grow with its time.
"""

from __future__ import annotations

import time

from crafter_pipeline.contracts import SIGN_OF_LIFE
from train_app.jobs import Job, JobStore

SILENT_SECONDS = 4.0


def give_sign(store: JobStore, job: Job, now: float | None = None) -> bool:
    """Record that an unfinished job is alive, if its last event is older than SILENT_SECONDS. True: it was."""
    now = time.time() if now is None else now
    last = store.events(job.id, limit=1, newest=True)
    if job.final or (last and now - last[0].created_at < SILENT_SECONDS):
        return False
    waited = f" for {now - job.started_at:.0f} s" if job.status == "running" and job.started_at else ""
    store.replace_event(job.id, SIGN_OF_LIFE, f"{job.status}{waited}", level="debug")
    return True
