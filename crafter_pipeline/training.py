"""A training job from the outside: asked for once, followed until there is a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

from crafter_pipeline.clients.backend import BackendClient, JobEvent, JobMetric
from crafter_pipeline.config import PolicyConfig, RlConfig, SftConfig, digest_of
from crafter_pipeline.errors import JobFailed
from crafter_pipeline.progress import progress

METRICS_PER_PAGE = 1000
POINTS_KEPT = 500
"""Per metric, evenly thinned: a curve needs no more."""


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class SftJob(_Plain):
    """A fine-tuning job on an uploaded dataset."""

    kind: Literal["sft"] = "sft"
    config: SftConfig
    file_id: str
    dataset_sha256: str

    @property
    def parent(self) -> str:
        return self.config.base_model

    @property
    def key(self) -> str:
        """Equal jobs have equal keys. The file's id is not part of it, its content is."""
        return "sft-" + digest_of(self.model_dump(mode="json", exclude={"file_id"}))

    def submit(self, client: BackendClient) -> str:
        """Create and start it, or find the one that was; returns its id."""
        job_id = client.create_sft(self.config, self.file_id, idempotency_key=self.key)
        if not client.job(job_id).final:
            client.start(job_id)
        return job_id


class RlJob(_Plain):
    """A reinforcement-learning job that plays through a task app."""

    kind: Literal["rl"] = "rl"
    config: RlConfig
    source: str
    environment: str
    policy: PolicyConfig
    task_app_url: str
    dataset_sha256: None = None

    @property
    def parent(self) -> str:
        return self.source

    @property
    def key(self) -> str:
        """Equal jobs have equal keys; one that plays elsewhere is another job."""
        return "rl-" + digest_of(self.model_dump(mode="json"))

    def submit(self, client: BackendClient) -> str:
        """Create it, or find the one that was; returns its id."""
        return client.create_rl(
            self.config,
            task_app_url=self.task_app_url,
            source=self.source,
            environment=self.environment,
            policy=self.policy,
            idempotency_key=self.key,
        )


class TrainedModel(_Plain):
    """What a job made, and what it came from."""

    id: str
    job_id: str
    parent: str
    dataset_sha256: str | None = None
    curves: dict[str, list[tuple[int, float]]] = {}
    """Metric -> (training step, value)."""
    warnings: list[str] = []


def follow(client: BackendClient, job_id: str, poll_seconds: float = 0.5) -> tuple[str, list[str]]:
    """Block until the job has a model; its events and metrics go to the progress. (model id, warnings)

    Raises JobFailed. Safe to call again for the same job.
    """
    warnings: list[str] = []
    done = 0

    def hear(event: JobEvent) -> None:
        if event.level in ("warning", "error"):
            progress().note(f"{event.level}: {event.message}")
        if event.level == "warning":
            warnings.append(event.message)
        if event.type.endswith(".training.started") and event.data.get("steps"):
            progress().expect(int(event.data["steps"]), "steps")

    def measure(step: int, values: dict[str, float]) -> None:
        nonlocal done
        progress().metrics(step, values)
        progress().advance(step - done)
        done = step

    job = client.wait(job_id, hear, measure, poll_seconds)
    if job.model_id is None:
        raise JobFailed(f"Job {job_id} {job.status}, but names no model.")
    return job.model_id, warnings


def curves(client: BackendClient, job_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a job over its training steps, thinned to what a plot can show."""
    found: dict[str, list[tuple[int, float]]] = {}
    for point in _metrics_after(client, job_id, None):
        found.setdefault(point.name, []).append((point.step, point.value))
    return {name: _thinned(points) for name, points in found.items()}


def _metrics_after(client: BackendClient, job_id: str, step: int | None) -> Iterator[JobMetric]:
    while page := client.metrics(job_id, after_step=step, limit=METRICS_PER_PAGE):
        yield from page
        last = max(point.step for point in page)
        if last == step:
            return
        step = last


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    if len(points) <= POINTS_KEPT:
        return points
    stride = len(points) / POINTS_KEPT
    return [points[min(len(points) - 1, round((i + 1) * stride) - 1)] for i in range(POINTS_KEPT)]
