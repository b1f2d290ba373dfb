"""The training backend over HTTP: files, jobs, events, metrics, models.

The wire is Synth's (the hosted backend and ours speak it); `Job`, `JobEvent` and `JobMetric` are what we keep of it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx

from crafter_pipeline.clients.http import REPEATABLE, json_object, send
from crafter_pipeline.config import PolicyConfig, RlConfig, SftConfig
from crafter_pipeline.contracts import TERMINAL_JOB_STATES
from crafter_pipeline.errors import BackendError, DataError, JobFailed

SUCCEEDED_STATES = frozenset({"succeeded", "completed"})


@dataclass(frozen=True, slots=True)
class Job:
    """A training job as the backend tells it."""

    id: str
    status: str
    model_id: str | None
    """The trained model, once there is one."""
    error: str | None

    @property
    def final(self) -> bool:
        return self.status in TERMINAL_JOB_STATES

    @property
    def succeeded(self) -> bool:
        return self.status in SUCCEEDED_STATES


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job; seq counts 1, 2, …"""

    seq: int
    type: str
    level: str
    message: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class JobMetric:
    """A number of a training step; steps start at 1."""

    name: str
    step: int
    value: float


# --------------------------------------------------------------------------- payloads


def sft_payload(config: SftConfig, file_id: str) -> dict[str, Any]:
    """The body of `POST /api/learning/jobs`: the wire's fields, and ours that it has no word for."""
    values = config.model_dump(mode="json", exclude_none=True)
    base_model, kind = values.pop("base_model"), values.pop("train_kind")
    return {
        "model": base_model,
        "training_type": "sft_offline",
        "training_file_id": file_id,
        "hyperparameters": {**values, "train_kind": kind},
        "metadata": {
            "effective_config": {
                "compute": {},
                "data": {"topology": {}},
                "training": {
                    "mode": "full_finetune" if kind == "fft" else "lora",
                    "use_qlora": kind == "qlora",
                },
            }
        },
    }


def rl_payload(
    config: RlConfig, *, task_app_url: str, source: str, environment: str, policy: PolicyConfig
) -> dict[str, Any]:
    """The body of `POST /api/rl/jobs`, with the whole configuration in `data.config`.

    The wire's own keys say the same as ours for backends that know only them.

    Args:
        source: The model to start from: a base model or a trained one's id.
    """
    turns = config.max_env_steps
    toml: dict[str, Any] = {
        "algorithm": {"type": "online", "method": "policy_gradient", "variety": "gspo"},
        "services": {"task_url": task_app_url},
        "compute": {},
        "reference": {"placement": "none"},
        "model": {
            ("source" if ":" in source else "base"): source,
            "trainer_mode": "full",
            "label": f"{environment}-rl",
        },
        "rollout": {
            "env_name": environment,
            "policy_name": environment,
            "max_turns": turns,
            "episodes_per_batch": config.groups_per_iteration * config.group_size,
            "max_concurrent_rollouts": config.concurrency,
            "batches_per_step": 1,
            "env_config": {**config.env_config, "max_env_steps": config.max_env_steps},
            "policy_config": policy.model_dump(mode="json"),
        },
        "evaluation": {},
        "training": {
            "num_epochs": 1,
            "iterations_per_epoch": config.iterations,
            "max_turns": turns,
            "batch_size": config.groups_per_iteration,
            "weight_sync_interval": 1,
            "log_interval": 1,
            **config.model_dump(mode="json", exclude_none=True),
        },
    }
    return {
        "job_type": "rl",
        "compute": {},
        "data": {
            "endpoint_base_url": task_app_url,
            "config": toml,
            ("model" if ":" in source else "base_model"): source,
        },
        "tags": {"source": "crafter-pipeline"},
        "metadata": {},
    }


# --------------------------------------------------------------------------- client


class BackendClient:
    """A training backend behind `http` (see `clients.http.service_client`; tests give the real app).

    Failures of the service are BackendError, those of a job JobFailed.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def upload(self, path: Path | str, purpose: str = "fine-tune") -> str:
        """Send a JSONL dataset; returns its file id. DataError when it cannot be read."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                answer = self._json(
                    "POST",
                    "/api/files",
                    data={"purpose": purpose},
                    files={"file": (path.name, file, "application/jsonl")},
                )
        except OSError as e:
            raise DataError(f"{path}: cannot be read: {e.strerror or e}") from e
        return str(self._named(answer, "id", "file_id"))

    def create_sft(self, config: SftConfig, file_id: str, *, name: str = "", idempotency_key: str | None = None) -> str:
        """A fine-tuning job that waits for `start`; returns its id.

        Args:
            idempotency_key: An equal key returns the job it made, unless that one failed or was cancelled.
        """
        payload = sft_payload(config, file_id)
        if name:
            payload["name"] = name
        return self._create("/api/learning/jobs", payload, idempotency_key)

    def start(self, job_id: str) -> None:
        """Let a fine-tuning job run. Starting it twice is starting it once."""
        self._json("POST", f"/api/learning/jobs/{job_id}/start", json={}, extensions=REPEATABLE)

    def create_rl(
        self,
        config: RlConfig,
        *,
        task_app_url: str,
        source: str,
        environment: str,
        policy: PolicyConfig,
        name: str = "",
        idempotency_key: str | None = None,
    ) -> str:
        """A reinforcement-learning job, started at once; returns its id."""
        payload = rl_payload(config, task_app_url=task_app_url, source=source, environment=environment, policy=policy)
        if name:
            payload["name"] = name
        return self._create("/api/rl/jobs", payload, idempotency_key)

    def job(self, job_id: str) -> Job:
        """The job's state."""
        answer = self._json("GET", f"/api/learning/jobs/{job_id}")
        return Job(
            id=str(self._named(answer, "job_id", "id")),
            status=str(answer.get("status") or answer.get("state") or "unknown"),
            model_id=answer.get("fine_tuned_model") or answer.get("model_id"),
            error=str(answer["error"]) if answer.get("error") else None,
        )

    def events(self, job_id: str, since_seq: int = 0, limit: int = 200) -> list[JobEvent]:
        """Events after `since_seq`, oldest first."""
        answer = self._json(
            "GET", f"/api/learning/jobs/{job_id}/events", params={"since_seq": since_seq, "limit": limit}
        )
        return [
            JobEvent(
                seq=int(e.get("seq") or 0),
                type=str(e.get("type") or ""),
                level=str(e.get("level") or "info"),
                message=str(e.get("message") or ""),
                data=e.get("data") or {},
            )
            for e in answer.get("events") or []
        ]

    def metrics(
        self, job_id: str, name: str | None = None, after_step: int | None = None, limit: int = 1000
    ) -> list[JobMetric]:
        """Points after `after_step`, by step and name."""
        given = {"name": name, "after_step": after_step, "limit": limit}
        answer = self._json(
            "GET",
            f"/api/learning/jobs/{job_id}/metrics",
            params={k: v for k, v in given.items() if v is not None},
        )
        return [JobMetric(str(p["name"]), int(p["step"]), float(p["value"])) for p in answer.get("points") or []]

    def wait(
        self,
        job_id: str,
        on_event: Callable[[JobEvent], None] | None = None,
        on_metrics: Callable[[int, dict[str, float]], None] | None = None,
        poll_seconds: float = 1.0,
    ) -> Job:
        """Block until the job has a model.

        Args:
            on_event: Gets every event once, in order.
            on_metrics: Gets each training step's numbers, `(step, {name: value})`, in order. A backend stores those of
                a step at once, so they are whole.

        Raises:
            JobFailed: it failed or was cancelled; the message carries the worker's last words.
        """
        seq, step, last_error = 0, 0, ""
        while True:
            job = self.job(job_id)  # before the rest, so that the last of it is read once the job is final
            while page := self.events(job_id, seq):
                for event in page:
                    seq = max(seq, event.seq)
                    last_error = event.message if event.level == "error" else last_error
                    if on_event is not None:
                        on_event(event)
            while on_metrics is not None:
                points = [p for p in self.metrics(job_id, after_step=step) if p.step > step]
                if not points:
                    break
                for step, of_step in groupby(points, key=lambda point: point.step):  # noqa: B007
                    on_metrics(step, {point.name: point.value for point in of_step})
            if job.final:
                if job.succeeded:
                    return job
                raise JobFailed(f"Job {job_id} {job.status}: {job.error or last_error or 'no reason given'}")
            time.sleep(poll_seconds)

    def models(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Trained models, newest first: {id, base_model, job_id, kind, parent, dataset_sha256, created_at, …}.

        Args:
            kind: `rl` for those of RL alone.
        """
        path = "/api/learning/models/rl" if kind == "rl" else "/api/learning/models"
        answer = self._json("GET", path)
        return list(answer.get("data") or answer.get("models") or [])

    def cancel(self, job_id: str) -> None:
        """Ask for the job's end."""
        self._json("POST", f"/api/learning/jobs/{job_id}/cancel", json={}, extensions=REPEATABLE)

    # ------------------------------------------------------------------ inside

    def _create(self, path: str, payload: Mapping[str, Any], idempotency_key: str | None) -> str:
        # with a key of its own, a request that is repeated after a lost answer makes one job
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        answer = self._json("POST", path, json=payload, headers=headers, extensions=REPEATABLE)
        return str(self._named(answer, "job_id", "id"))

    def _json(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        response = send(
            self._http,
            method,
            path,
            raises=BackendError,
            service="training backend",
            start_with="crafter-pipeline backend",
            key_name="SYNTH_API_KEY",
            **arguments,
        )
        what = f"{self._http.base_url}{path} is no training backend: its answer is not a JSON object."
        return json_object(response, BackendError(what))

    def _named(self, answer: Mapping[str, Any], *names: str) -> Any:
        for name in names:
            if answer.get(name):
                return answer[name]
        raise BackendError(f"{self._http.base_url} answered without {' or '.join(names)}: {str(answer)[:300]}")
