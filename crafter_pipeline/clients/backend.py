"""The training backend over HTTP: files, jobs, events, metrics, models.

The wire is Synth's (the hosted backend and ours speak it); `Job`, `JobEvent` and `JobMetric` are what we keep of it.
Aliases are ours alone.
"""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import quote

import httpx

from crafter_pipeline.clients.http import REPEATABLE, download, json_object, send
from crafter_pipeline.clients.payloads import rl_payload, sft_payload
from crafter_pipeline.config import PolicyConfig, RlConfig, SftConfig
from crafter_pipeline.contracts import TERMINAL_JOB_STATES
from crafter_pipeline.errors import BackendError, DataError, JobFailed
from crafter_pipeline.evaluation import Comparison
from crafter_pipeline.promotion import Evidence

SUCCEEDED_STATES = frozenset({"succeeded", "completed"})
ExportForm = Literal["merged", "adapter"]

_ERRORS: Any = {
    "raises": BackendError,
    "service": "training backend",
    "start_with": "crafter-pipeline backend",
    "key_name": "SYNTH_API_KEY",
}


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


@dataclass(frozen=True, slots=True)
class AliasMove:
    """An alias went to another model."""

    number: int
    """1, 2, … within the alias."""
    action: str
    """promoted, or rolled back."""
    model_id: str | None
    """Who got it; None: nobody."""
    at: str
    """ISO 8601."""
    by: str
    reason: str
    comparison: Comparison | None
    """What a promotion's evidence showed."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that moves from model to model."""

    name: str
    model_id: str | None
    """Who holds it; None: nobody does."""
    since: str | None
    """ISO 8601."""
    evidence: Evidence | None
    """By which the holder was promoted."""
    history: tuple[AliasMove, ...]
    """The newest move first."""


# --------------------------------------------------------------------------- client


class BackendClient:
    """A training backend behind `http` (see `clients.http.service_client`; tests give the real app).

    Failures of the service are BackendError, those of a job JobFailed.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    # ------------------------------------------------------------------ files

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

    def download_file(self, file_id: str, out: Path | str) -> Path:
        """A dataset's bytes; the file appears whole or not at all. DataError when it cannot be written."""
        out = Path(out)
        with _whole(out) as temporary, temporary.open("wb") as file:
            self._download(f"/api/files/{file_id}/content", file)
        return out

    # ------------------------------------------------------------------ jobs

    def create_sft(
        self,
        config: SftConfig,
        file_id: str,
        *,
        validation_file_id: str | None = None,
        task_app_url: str | None = None,
        tags: Mapping[str, str] | None = None,
        name: str = "",
        idempotency_key: str | None = None,
    ) -> str:
        """A fine-tuning job that waits for `start`; returns its id. `payloads.sft_payload` describes what it is of.

        Args:
            idempotency_key: An equal key returns the job it made, unless that one failed or was cancelled.
        """
        payload = sft_payload(
            config, file_id, validation_file_id=validation_file_id, task_app_url=task_app_url, tags=tags
        )
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
        tags: Mapping[str, str] | None = None,
        name: str = "",
        idempotency_key: str | None = None,
    ) -> str:
        """A reinforcement-learning job, started at once; returns its id."""
        payload = rl_payload(
            config, task_app_url=task_app_url, source=source, environment=environment, policy=policy, tags=tags
        )
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
            on_metrics: Gets each training step's numbers, `(step, {name: value})`, in order; again with those that
                came later, such as the step's evaluation.

        Raises:
            JobFailed: it failed or was cancelled; the message carries the worker's last words.
        """
        seq, last_error = 0, ""
        step, told = 0, frozenset[str]()  # the last step with numbers, and which of them were told
        while True:
            job = self.job(job_id)  # before the rest, so that the last of it is read once the job is final
            while page := self.events(job_id, seq):
                for event in page:
                    seq = max(seq, event.seq)
                    last_error = event.message if event.level == "error" else last_error
                    if on_event is not None:
                        on_event(event)
            while on_metrics is not None:
                points = self.metrics(job_id, after_step=step - 1 if step else None)
                news = [p for p in points if p.step > step or (p.step == step and p.name not in told)]
                if not news:
                    break
                for at, of_step in groupby(news, key=lambda point: point.step):
                    values = {point.name: point.value for point in of_step}
                    step, told = at, frozenset(values) | (told if at == step else frozenset())
                    on_metrics(step, values)
            if job.final:
                if job.succeeded:
                    return job
                raise JobFailed(f"Job {job_id} {job.status}: {job.error or last_error or 'no reason given'}")
            time.sleep(poll_seconds)

    def cancel(self, job_id: str) -> None:
        """Ask for the job's end."""
        self._json("POST", f"/api/learning/jobs/{job_id}/cancel", json={}, extensions=REPEATABLE)

    def plan(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Memory and time that a job would take, see `payloads`; nothing is started."""
        return self._json("POST", "/api/plan", json=payload, extensions=REPEATABLE)

    def checkpoints(self, job_id: str) -> list[dict[str, Any]]:
        """The job's complete checkpoints."""
        return self._list(f"/api/learning/jobs/{job_id}/checkpoints", "data", "checkpoints")

    def samples(
        self, job_id: str, *, iteration: int | None = None, seed: int | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """What an RL job trained, a line per sample; `sample` has its tokens."""
        given = {"iteration": iteration, "seed": seed, "limit": limit}
        params = {k: v for k, v in given.items() if v is not None}
        return self._list(f"/api/rl/jobs/{job_id}/samples", "data", "samples", params=params)

    def sample(self, job_id: str, sample_id: str) -> dict[str, Any]:
        """One trained sample, token by token."""
        return self._json("GET", f"/api/rl/jobs/{job_id}/samples/{sample_id}")

    # ------------------------------------------------------------------ models

    def models(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Trained models, newest first: {id, base_model, job_id, kind, parent, dataset_sha256, created_at, …}.

        Args:
            kind: `rl` for those of RL alone.
        """
        return self._list("/api/learning/models/rl" if kind == "rl" else "/api/learning/models", "data", "models")

    def model(self, model_id: str) -> dict[str, Any]:
        """A trained model by any of its names."""
        return self._json("GET", self._path_of(model_id))

    def model_card(self, model_id: str) -> str:
        """What the model is and what it was made of, as Markdown."""
        return self._send("GET", f"{self._path_of(model_id)}/export", params={"form": "card"}).text

    def export_model(self, model_id: str, out: Path | str, form: ExportForm = "merged") -> Path:
        """A model as a folder: whole and merged, or its adapter alone. Appears whole or not at all.

        DataError when `out` is there already, or cannot be written; BackendError when the model has no such form.
        """
        out = Path(out)
        with tempfile.TemporaryFile() as archive:
            self._download(f"{self._path_of(model_id)}/export", archive, params={"form": form})
            archive.seek(0)
            _unpack(archive, out)
        return out

    # ------------------------------------------------------------------ aliases

    def alias(self, name: str) -> Alias:
        """Who holds an alias, e.g. `champion`, and how it got there."""
        return _alias(self._json("GET", f"/api/learning/aliases/{name}"))

    def move_alias(self, name: str, model: str, *, instead_of: str | None, evidence: Evidence, by: str = "") -> Alias:
        """Give an alias to a model; one that has it keeps it. BackendError when somebody else than `instead_of` holds
        it by now (status 409), or the evidence does not pass the rule (422).

        Args:
            instead_of: Full id of the holder, as the evidence knows it; None: nobody holds it.
        """
        body = {"model": model, "instead_of": instead_of, "evidence": evidence.model_dump(mode="json"), "by": by}
        return _alias(self._json("PUT", f"/api/learning/aliases/{name}", json=body))

    def rollback_alias(self, name: str, *, move: int | None = None, by: str = "", reason: str = "") -> Alias:
        """Give an alias back to who held it before; BackendError (status 409) when there was nobody.

        Args:
            move: Take back exactly this move, also when nobody held the alias before it; 409 when it is not the last.
        """
        body = {"move": move, "by": by, "reason": reason}
        return _alias(self._json("POST", f"/api/learning/aliases/{name}/rollback", json=body))

    def serving(self, model: str) -> str:
        """The id of the model that answers under this name: it is asked for one token."""
        body = {"model": model, "messages": [{"role": "user", "content": "noop"}], "max_tokens": 1}
        answer = self._json("POST", "/v1/chat/completions", json=body, extensions=REPEATABLE)
        return str(self._named(answer, "model"))

    # ------------------------------------------------------------------ inside

    def _create(self, path: str, payload: Mapping[str, Any], idempotency_key: str | None) -> str:
        # with a key of its own, a request that is repeated after a lost answer makes one job
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        answer = self._json("POST", path, json=payload, headers=headers, extensions=REPEATABLE)
        return str(self._named(answer, "job_id", "id"))

    def _path_of(self, model_id: str) -> str:
        return f"/api/models/{quote(model_id, safe='/:')}"

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return send(self._http, method, path, **_ERRORS, **arguments)

    def _json(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        response = self._send(method, path, **arguments)
        what = f"{self._http.base_url}{path} is no training backend: its answer is not a JSON object."
        return json_object(response, BackendError(what))

    def _list(self, path: str, *names: str, **arguments: Any) -> list[dict[str, Any]]:
        answer = self._json("GET", path, **arguments)
        return next((list(answer[name]) for name in names if isinstance(answer.get(name), list)), [])

    def _download(self, path: str, into: BinaryIO, **arguments: Any) -> None:
        download(self._http, path, into, **_ERRORS, **arguments)

    def _named(self, answer: Mapping[str, Any], *names: str) -> Any:
        for name in names:
            if answer.get(name):
                return answer[name]
        raise BackendError(f"{self._http.base_url} answered without {' or '.join(names)}: {str(answer)[:300]}")


def _alias(answer: Mapping[str, Any]) -> Alias:
    evidence = answer.get("evidence")
    return Alias(
        name=str(answer["alias"]),
        model_id=answer.get("model_id"),
        since=answer.get("since"),
        evidence=None if evidence is None else Evidence.model_validate(evidence),
        history=tuple(
            AliasMove(
                number=int(m["number"]),
                action=str(m["action"]),
                model_id=m.get("model_id"),
                at=str(m["at"]),
                by=str(m.get("by") or ""),
                reason=str(m.get("reason") or ""),
                comparison=Comparison.from_json(m["comparison"]) if m.get("comparison") else None,
            )
            for m in answer.get("history") or []
        ),
    )


# --------------------------------------------------------------------------- what is downloaded


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A path beside `out` for a file or a folder, on the disk and renamed to `out` at the end. DataError names what
    cannot be written."""
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for path in (temporary, *temporary.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        os.replace(temporary, out)
    except OSError as e:
        raise DataError(f"{out}: cannot be written ({e.strerror or e}). Choose another path.") from e
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _unpack(archive: BinaryIO, out: Path) -> None:
    """A model's archive as the folder `out`. Members that would lie outside it are refused."""
    if out.exists():
        raise DataError(f"{out} is there already. Remove it, or name another folder.")
    try:
        with _whole(out) as folder, tarfile.open(fileobj=archive) as members:
            members.extractall(folder, filter="data")
    except tarfile.TarError as e:
        raise BackendError(f"The archive of the model cannot be unpacked: {e}") from e
