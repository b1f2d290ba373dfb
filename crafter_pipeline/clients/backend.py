"""The training backend over HTTP: files, jobs, events, metrics, models.

The wire is Synth's (the hosted backend and ours speak it); `Job`, `JobEvent` and `JobMetric` are what we keep of it.
Aliases are ours alone.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from urllib.parse import quote

import httpx

from crafter_pipeline.clients.http import REPEATABLE, download, json_object, send
from crafter_pipeline.contracts import SIGN_OF_LIFE, TERMINAL_JOB_STATES, Compute
from crafter_pipeline.errors import BackendError, DataError, JobFailed, JobNotOver
from crafter_pipeline.model_names import CHAMPION, is_trained

if TYPE_CHECKING:  # who only asks for a status waits for none of it
    from crafter_pipeline.config import PolicyConfig, RlConfig, SftConfig
    from crafter_pipeline.evaluation import Comparison
    from crafter_pipeline.promotion import Evidence

SUCCEEDED_STATES = frozenset({"succeeded", "completed"})
ExportForm = Literal["merged", "adapter"]
Kind = Literal["sft", "rl"]
TAGGED = 100
"""Jobs among which tags are looked for, on a backend that does not look itself."""
_UNKNOWN = (400, 404, 405, 422)
"""How backends say that they know no model of this name, or no such route."""

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
    compute: Compute | None = None
    """What it has used up so far; None: the backend does not tell."""

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
    created_at: str = ""
    """ISO 8601; empty: not told."""


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


# --------------------------------------------------------------------------- names of models


def kind_of(model: Mapping[str, Any]) -> str:
    """What made a model of the wire: `sft` or `rl`. Where it does not say, its id does."""
    return str(model.get("kind") or ("rl" if str(model.get("id")).startswith("rl:") else "sft"))


def _tags(job: Mapping[str, Any]) -> dict[str, str]:
    tags = job.get("tags") or (job.get("metadata") or {}).get("tags") or {}
    return {str(key): str(value) for key, value in tags.items()} if isinstance(tags, Mapping) else {}


def job_id_in(name: str) -> str | None:
    """The job in a model's name; None: it names none, e.g. a base model or `latest:sft`."""
    if not is_trained(name) or name == CHAMPION or name.startswith("latest:"):
        return None
    return name.rpartition(":")[2] or None


def _named(models: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The model of the wire, newest first, that a name means."""
    if name.startswith("latest:"):
        return next((model for model in models if kind_of(model) == name.removeprefix("latest:")), None)
    head, _, last = name.rpartition(":")
    base = head.partition(":")[2]
    for model in models:
        id = str(model.get("id") or "")
        job_id = model.get("job_id") or id.rpartition(":")[2]
        if name == id or (is_trained(name) and last == job_id and base in ("", model.get("base_model"))):
            return model
    return None


# --------------------------------------------------------------------------- client


class BackendClient:
    """A training backend behind `http` (see `clients.http.service_client`; tests give the real app).

    Failures of the service are BackendError, those of a job JobFailed.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def answer_within(self, seconds: float) -> None:
        """Wait no longer than this for an answer, from now on."""
        self._http.timeout = httpx.Timeout(seconds)

    # ------------------------------------------------------------------ files

    def upload(
        self, path: Path | str, purpose: str = "fine-tune", on_bytes: Callable[[int], None] | None = None
    ) -> str:
        """Send a JSONL dataset; returns its file id. DataError when it cannot be read.

        Args:
            on_bytes: Told how many bytes more are on their way.
        """
        path = Path(path)
        try:
            with _Watched(path, on_bytes) as file:
                answer = self._json(
                    "POST",
                    "/api/files",
                    data={"purpose": purpose},
                    files={"file": (path.name, file, "application/jsonl")},
                )
        except OSError as e:
            raise DataError(f"{path}: cannot be read: {e.strerror or e}") from e
        return str(self._named(answer, "id", "file_id"))

    def download_file(self, file_id: str, out: Path | str, sha256: str | None = None) -> str:
        """A dataset's bytes into a file, which appears whole or not at all; their sha256.

        DataError when it cannot be written, or when the bytes are not those of the `sha256` that is expected.
        """
        out = Path(out)
        with _whole(out) as temporary:
            with temporary.open("wb") as file:
                self._download(f"/api/files/{file_id}/content", file)
            with temporary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if sha256 is not None and digest != sha256.lower():
                raise DataError(
                    f"{file_id}: its bytes have the sha256 {digest}, not {sha256}; {out} was not written. Try again."
                )
        return digest

    def files(self, *, purpose: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """Uploaded files, newest first: {id, purpose, bytes, filename, created_at, …}."""
        params = {"limit": limit} if purpose is None else {"limit": limit, "purpose": purpose}
        return self._list("/api/files", "files", "data", "items", params=params)

    def file(self, file_id: str) -> dict[str, Any]:
        """What is known of an uploaded file."""
        return self._json("GET", f"/api/files/{file_id}")

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
        from crafter_pipeline.clients.payloads import sft_payload

        payload = sft_payload(
            config, file_id, validation_file_id=validation_file_id, task_app_url=task_app_url, tags=tags
        )
        if name:
            payload["name"] = name
        return self.submit("sft", payload, idempotency_key)

    def submit(self, kind: Kind, payload: Mapping[str, Any], idempotency_key: str | None = None) -> str:
        """A job from its body as it goes over the wire, see `payloads`; returns its id. Fine-tuning waits for `start`,
        reinforcement learning is started at once."""
        return self._create("/api/learning/jobs" if kind == "sft" else "/api/rl/jobs", payload, idempotency_key)

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
        from crafter_pipeline.clients.payloads import rl_payload

        payload = rl_payload(
            config, task_app_url=task_app_url, source=source, environment=environment, policy=policy, tags=tags
        )
        if name:
            payload["name"] = name
        return self.submit("rl", payload, idempotency_key)

    def jobs(
        self,
        *,
        status: str | None = None,
        kind: str | None = None,
        created_after: str | None = None,
        tags: Mapping[str, str] | None = None,
        limit: int = 20,
    ) -> list[dict[str, Any]]:
        """Jobs as the wire tells them, newest first: {job_id, training_type, status, created_at, model, tags, …}.

        Args:
            created_after: ISO 8601.
            tags: Those that a job has; backends that do not look at them are asked for more jobs.
        """
        wanted = dict(tags or {})
        params: dict[str, Any] = {
            "status": status,
            "type": kind,
            "created_after": created_after,
            "tag": [f"{key}={value}" for key, value in wanted.items()] or None,
            "limit": max(limit, TAGGED) if wanted else limit,
        }
        given = {key: value for key, value in params.items() if value is not None}
        found = self._list("/api/learning/jobs", "jobs", "data", "results", params=given)
        return [job for job in found if wanted.items() <= _tags(job).items()][:limit]

    def job_named(self, name: str) -> str:
        """The id of the job that a name means: itself, or the job of a trained model. BackendError as `model`."""
        if name == CHAMPION or name.startswith("latest:"):
            return str(self._named(self.model(name), "job_id"))
        return job_id_in(name) or name

    def job_config(self, job_id: str) -> dict[str, Any]:
        """What a job was asked for: {config, …}."""
        return self._json("GET", f"/api/learning/jobs/{job_id}/config")

    def job_facts(self, job_id: str) -> dict[str, Any]:
        """Everything that the wire tells of a job."""
        return self._json("GET", f"/api/learning/jobs/{job_id}")

    def timeline(self, job_id: str) -> list[dict[str, Any]]:
        """Phases of a job, oldest first: {phase, created_at, …}."""
        return self._list(f"/api/learning/jobs/{job_id}/timeline", "timeline", "events")

    def runs(self, job_id: str) -> list[dict[str, Any]]:
        """Attempts at a job: {run_number, status, started_at, ended_at, …}."""
        return self._list(f"/api/jobs/{job_id}/runs", "runs", "data")

    def slots(self) -> int:
        """Jobs that it trains at once; 1 where a backend does not tell."""
        return int(self._json("GET", "/api/health").get("slots") or 1)

    def verify_task_app(self, url: str) -> dict[str, Any]:
        """Whether the backend reaches a task app with its key: {any_ok, attempts, …}. BackendError when not."""
        answer = self._json("POST", "/api/rl/verify_task_app", json={"endpoint_base_url": url}, extensions=REPEATABLE)
        if answer.get("any_ok") is not True:
            raise BackendError(
                f"The training backend at {self._http.base_url} cannot use the task app at {url}: "
                f"{answer.get('attempts') or answer}. Both need the same ENVIRONMENT_API_KEY, and an address that the "
                "backend reaches."
            )
        return answer

    def job(self, job_id: str) -> Job:
        """The job's state."""
        answer = self.job_facts(job_id)
        return Job(
            id=str(self._named(answer, "job_id", "id")),
            status=str(answer.get("status") or answer.get("state") or "unknown"),
            model_id=answer.get("fine_tuned_model") or answer.get("model_id"),
            error=str(answer["error"]) if answer.get("error") else None,
            compute=Compute.of(answer.get("compute")),
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
                created_at=str(e.get("created_at") or e.get("timestamp") or ""),
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
        timeout_seconds: float | None = None,
        on_status: Callable[[Job], None] | None = None,
    ) -> Job:
        """Block until the job has a model.

        Args:
            on_event: Gets every event once, in order.
            on_metrics: Gets each training step's numbers, `(step, {name: value})`, in order; again with those that
                came later, such as the step's evaluation.
            timeout_seconds: Longest wait; None: without end.
            on_status: Gets the job's state at every poll, before its news.

        Raises:
            JobFailed: it failed or was cancelled; the message carries the worker's last words.
            JobNotOver: it is not over in time; it goes on.
        """
        seq, last_error = 0, ""
        step, told = 0, frozenset[str]()  # the last step with numbers, and which of them were told
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            job = self.job(job_id)  # before the rest, so that the last of it is read once the job is final
            if on_status is not None:
                on_status(job)
            while page := [event for event in self.events(job_id, seq) if event.seq > seq]:
                for event in page:
                    seq = max(seq, event.seq)
                    last_error = event.message if event.level == "error" else last_error
                    if on_event is not None and event.type != SIGN_OF_LIFE:
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
            if deadline is not None and time.monotonic() >= deadline:
                raise JobNotOver(f"Job {job_id} is {job.status} after {timeout_seconds:.0f} s; it goes on without us.")
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

    def judge(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A trace judged: {status, outcome_review, event_reviews, event_totals, …}."""
        return self._json("POST", "/api/judge/v1/score", json=body, extensions=REPEATABLE)

    # ------------------------------------------------------------------ models

    def models(self, kind: Kind | None = None, limit: int | None = None) -> list[dict[str, Any]]:
        """Trained models, newest first: {id, base_model, job_id, kind, parent, dataset_sha256, created_at, …}.

        Args:
            kind: Those of fine-tuning, or of reinforcement learning alone.
            limit: At most so many; None: as many as the backend lists unasked.
        """
        path = "/api/learning/models/rl" if kind == "rl" else "/api/learning/models"
        params = {name: value for name, value in (("type", kind), ("limit", limit)) if value is not None}
        found = self._list(path, "data", "models", params=params)
        newest_first = sorted(found, key=lambda model: str(model.get("created_at") or ""), reverse=True)
        return [model for model in newest_first if kind in (None, kind_of(model))][:limit]

    def model(self, name: str) -> dict[str, Any]:
        """A trained model by any of its names, at least {id, job_id}. A backend that knows full ids alone is asked for
        its list.

        BackendError, with status 404 and the nearest ids, when there is none.
        """
        try:
            return self._json("GET", self._path_of(name))
        except BackendError as e:
            if e.status not in _UNKNOWN:
                raise
        known = self.models()
        found = _named(known, name) or self._trained_by(name)
        if found is not None:
            return found
        raise self._unknown_model(name, known)

    def full_id(self, name: str) -> str:
        """The full id of the trained model that a name means: a full id, a job's id, `ft:<job>`, `latest:sft`,
        `latest:rl`, `champion`. Names of base models and of built-in ones are returned as they are.

        BackendError, with status 404 and the nearest ids, when there is no such model.
        """
        return str(self.model(name)["id"]) if is_trained(name) else name

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

    def alias_holder(self, name: str) -> str | None:
        """The model that holds an alias; None: none does."""
        return self._json("GET", f"/api/learning/aliases/{name}").get("model_id")

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
        return f"/api/learning/models/{quote(model_id, safe='/:')}"

    def _trained_by(self, name: str) -> dict[str, Any] | None:
        """The model of the job that a name ends with, although no list has it. BackendError when the job has none."""
        job_id = job_id_in(name)
        if job_id is None:
            return None
        try:
            job = self.job(job_id)
        except BackendError as e:
            if e.status not in _UNKNOWN:
                raise
            return None
        if job.model_id is not None:
            return {"id": job.model_id, "job_id": job.id}
        missing = BackendError(
            f"Job {job.id} has no model: it is {job.status}. See `crafter-pipeline status jobs logs {job.id}`."
        )
        missing.status = 404
        raise missing

    def _unknown_model(self, name: str, known: list[dict[str, Any]]) -> BackendError:
        ids = [str(model["id"]) for model in known if model.get("id")]
        if name == CHAMPION:
            hint = "Make one with `crafter-pipeline models promote`."
        elif not ids:
            hint = "It has none yet; train one with `crafter-pipeline train`."
        elif name.startswith("latest:"):
            hint = f"The newest one is {ids[0]}."
        else:
            shorts = {short: id for id in ids for short in (id, id.rpartition(":")[2])}
            close = difflib.get_close_matches(name, shorts, n=3, cutoff=0.4)
            near = dict.fromkeys(shorts[short] for short in close) or ids[:3]
            hint = f"{'Did you mean' if close else 'The newest are'} {' or '.join(near)}{'?' if close else '.'}"
        error = BackendError(f"The training backend at {self._http.base_url} has no trained model {name!r}. {hint}")
        error.status = 404
        return error

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
    from crafter_pipeline.evaluation import Comparison
    from crafter_pipeline.promotion import Evidence

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


# --------------------------------------------------------------------------- what is sent, what is downloaded


class _Watched(io.FileIO):
    """A file that tells how much of it has been read."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None] | None) -> None:
        super().__init__(path, "rb")
        self._on_bytes = on_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self._on_bytes is not None:
            self._on_bytes(len(data))
        return data


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
