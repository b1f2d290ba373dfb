"""A training job from the outside: asked for once, followed until there is a model."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from crafter_pipeline.clients.backend import BackendClient, JobEvent, JobMetric
from crafter_pipeline.clients.payloads import rl_payload, sft_payload
from crafter_pipeline.config import PolicyConfig, RlConfig, SftConfig, digest_of
from crafter_pipeline.contracts import Compute
from crafter_pipeline.dataset.manifest import DatasetManifest, SplitFile
from crafter_pipeline.errors import BackendError, JobFailed
from crafter_pipeline.progress import ETA, SHOWN_METRICS, progress

METRICS_PER_PAGE = 1000
POINTS_KEPT = 500
"""Per metric, evenly thinned: a curve needs no more."""
BURST_SECONDS = 0.1
"""Steps that are told within it came together."""
PACE_REPORTS = 40
"""The latest: what a guess of the time left goes by."""


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


@dataclass(frozen=True)
class TrainingFiles:
    """The files of a fine-tuning, as `submit-sft` takes them: contents decide the result, places do not."""

    train: SplitFile
    validation: SplitFile | None

    @classmethod
    def of(cls, dataset: DatasetManifest, held_back: DatasetManifest | None = None) -> TrainingFiles:
        """The training rows of `dataset`, and the validation rows of `held_back` (its own by default)."""
        return cls(dataset.splits["train"], (held_back or dataset).validation)

    @property
    def hashes(self) -> tuple[str, str | None]:
        """dataset_sha256, validation_sha256."""
        return self.train.sha256, None if self.validation is None else self.validation.sha256

    @property
    def places(self) -> dict[str, Path | None]:
        """dataset, validation."""
        validation = None if self.validation is None else Path(self.validation.path)
        return {"dataset": Path(self.train.path), "validation": validation}


class SftJob(_Plain):
    """A fine-tuning job on an uploaded dataset."""

    kind: Literal["sft"] = "sft"
    config: SftConfig
    file_id: str
    dataset_sha256: str
    validation_file_id: str | None = None
    validation_sha256: str | None = None
    """Of the dataset whose loss is told; None: there is none."""
    task_app_url: str | None = None
    """Who plays the episodes of `config.dev`; None: there are none."""
    tags: dict[str, str] = {}

    @property
    def parent(self) -> str:
        return self.config.base_model

    @property
    def in_words(self) -> str:
        """For a person who decides."""
        return f"Fine-tuning of `{self.parent}` on dataset {self.dataset_sha256[:12]}"

    @property
    def key(self) -> str:
        """Equal jobs have equal keys. The files' ids are not part of it, their contents are."""
        return "sft-" + digest_of(self.model_dump(mode="json", exclude={"file_id", "validation_file_id"}))

    def submit(self, client: BackendClient) -> str:
        """Create and start it, or find the one that was; returns its id."""
        job_id = client.create_sft(
            self.config,
            self.file_id,
            validation_file_id=self.validation_file_id,
            task_app_url=self.task_app_url,
            tags=self.tags,
            idempotency_key=self.key,
        )
        if not client.job(job_id).final:
            client.start(job_id)
        return job_id

    def plan(self, client: BackendClient) -> JobPlan | None:
        """What it will take; None: the backend cannot say."""
        return _asked(
            client,
            sft_payload(
                self.config,
                self.file_id,
                validation_file_id=self.validation_file_id,
                task_app_url=self.task_app_url,
                tags=self.tags,
            ),
        )


class RlJob(_Plain):
    """A reinforcement-learning job that plays through a task app."""

    kind: Literal["rl"] = "rl"
    config: RlConfig
    source: str
    environment: str
    policy: PolicyConfig
    task_app_url: str
    tags: dict[str, str] = {}
    dataset_sha256: None = None

    @property
    def parent(self) -> str:
        return self.source

    @property
    def in_words(self) -> str:
        """For a person who decides."""
        return f"Reinforcement learning from `{self.parent}`, {self.config.iterations} iterations"

    @property
    def key(self) -> str:
        """Equal jobs have equal keys; one that plays elsewhere is another job."""
        return "rl-" + digest_of(self.model_dump(mode="json"))

    def submit(self, client: BackendClient) -> str:
        """Create it, or find the one that was; returns its id. BackendError when the backend reaches no task app."""
        for url in (self.task_app_url, *self.config.task_app_urls):
            client.verify_task_app(url)
        return client.create_rl(
            self.config,
            task_app_url=self.task_app_url,
            source=self.source,
            environment=self.environment,
            policy=self.policy,
            tags=self.tags,
            idempotency_key=self.key,
        )

    def plan(self, client: BackendClient) -> JobPlan | None:
        """What it will take; None: the backend cannot say."""
        return _asked(
            client,
            rl_payload(
                self.config,
                task_app_url=self.task_app_url,
                source=self.source,
                environment=self.environment,
                policy=self.policy,
                tags=self.tags,
            ),
        )


@dataclass(frozen=True)
class JobPlan:
    """What a job will take, as far as its backend can tell."""

    device: str
    """cpu, mps or cuda."""
    machine: str
    steps: int
    shortest_seconds: float
    longest_seconds: float
    memory_bytes: int
    """At the peak."""
    device_bytes: int
    fits: bool

    @property
    def in_words(self) -> str:
        """For a person who decides."""
        memory, room = (f"{n / (1 << 30):.1f} GiB" for n in (self.memory_bytes, self.device_bytes))
        fits = "" if self.fits else " **It does not fit.**"
        return (
            f"{self.steps:,} training steps on {self.machine} ({self.device}), about {_time(self.shortest_seconds)} "
            f"to {_time(self.longest_seconds)}; {memory} of {room} of memory.{fits}"
        )


def _asked(client: BackendClient, payload: dict[str, Any]) -> JobPlan | None:
    try:
        told = client.plan(payload)
        shortest, longest = told["seconds_range"]
        return JobPlan(
            device=str(told["device"]),
            machine=str(told["machine"]),
            steps=int(told["steps"]),
            shortest_seconds=float(shortest),
            longest_seconds=float(longest),
            memory_bytes=int(told["memory"]["total"]),
            device_bytes=int(told["memory_bytes"]),
            fits=bool(told["fits"]),
        )
    except (BackendError, KeyError, TypeError, ValueError):  # not every backend plans, nor every model's shape is known
        return None


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class TrainedModel(_Plain):
    """What a job made, and what it came from."""

    id: str
    job_id: str
    parent: str
    dataset_sha256: str | None = None
    curves: dict[str, list[tuple[int, float]]] = {}
    """Metric -> (training step, value)."""
    warnings: list[str] = []
    compute: Compute | None = None
    """What its job used up; None: the backend does not tell."""

    @property
    def in_words(self) -> str:
        """Its name and how the first of the metrics that matter went, e.g. "loss 3.1 → 0.84 in 400 steps"."""
        warned = f", {len(self.warnings)} warnings" if self.warnings else ""
        for name, word in SHOWN_METRICS.items():
            if points := self.curves.get(name):
                (_, first), (step, last) = points[0], points[-1]
                return f"{self.id}: {word} {first:.3g} → {last:.3g} in {step} steps{warned}"
        return f"{self.id}{warned}"


def follow(
    client: BackendClient, job_id: str, poll_seconds: float = 0.5, patience_seconds: float | None = None
) -> tuple[str, list[str]]:
    """Block until the job has a model; its events and metrics go to the progress. (model id, warnings)

    Raises JobFailed, and JobNotOver after `patience_seconds`; None waits without end. Safe to call again for the same
    job.
    """
    listener = _Listener()
    job = client.wait(job_id, listener.hear, listener.measure, poll_seconds, patience_seconds)
    if job.model_id is None:
        raise JobFailed(f"Job {job_id} {job.status}, but names no model.")
    return job.model_id, listener.warnings


class _Listener:
    """Tells the progress what a job says."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        """Alarms among them, each once."""
        self._done = self._total = 0
        self._numbers: dict[str, float] = {}
        self._pace = _Pace()

    def hear(self, event: JobEvent) -> None:
        """An event. Warnings, and with them alarms of RL, are worth a line."""
        if event.level in ("warning", "error") and event.message not in self.warnings:
            progress().note(f"{event.level}: {event.message}")
        if event.level == "warning" and event.message not in self.warnings:
            self.warnings.append(event.message)
        if event.type.endswith(".training.started") and event.data.get("steps"):
            self._total = int(event.data["steps"])
            progress().expect(self._total, "steps")

    def measure(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step; those that come later, of its evaluation, join those that were there."""
        self._numbers = {**self._numbers, **values} if step == self._done else values
        left = self._pace.seconds_left(step, self._total, time.monotonic())
        progress().metrics(step, self._numbers if left is None else {**self._numbers, ETA: left})
        progress().advance(step - self._done)
        self._done = step


class _Pace:
    """How long the rest of a job takes, if it goes on as it did lately: a job that was resumed had a long pause."""

    def __init__(self) -> None:
        self._lately: deque[tuple[int, float]] = deque(maxlen=PACE_REPORTS)
        self._settled = False

    def seconds_left(self, step: int, total: int, now: float) -> float | None:
        """None: not known yet. What came in one burst at the beginning was done before: it says nothing of the pace."""
        self._settled = self._settled or (bool(self._lately) and now - self._lately[-1][1] > BURST_SECONDS)
        if not self._settled:
            self._lately.clear()
        self._lately.append((step, now))
        since, started = self._lately[0]
        if step <= since or total <= step:
            return None
        return (total - step) * (now - started) / (step - since)


def curves(client: BackendClient, job_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a job over its training steps, thinned to what a plot can show."""
    found: dict[str, list[tuple[int, float]]] = {}
    for point in _metrics_after(client, job_id, None):
        found.setdefault(point.name, []).append((point.step, point.value))
    return {name: _thinned(points) for name, points in found.items()}


def _metrics_after(client: BackendClient, job_id: str, step: int | None) -> Iterator[JobMetric]:
    while True:
        page = client.metrics(job_id, after_step=step, limit=METRICS_PER_PAGE)
        last = max((point.step for point in page), default=0)
        whole = [point for point in page if point.step < last]
        if len(page) < METRICS_PER_PAGE or not whole:
            yield from page
            return
        yield from whole  # a full page may end within a step: that comes with the next one
        step = last - 1


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    if len(points) <= POINTS_KEPT:
        return points
    stride = len(points) / POINTS_KEPT
    return [points[min(len(points) - 1, round((i + 1) * stride) - 1)] for i in range(POINTS_KEPT)]
