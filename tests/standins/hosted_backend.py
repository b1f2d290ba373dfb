"""The hosted training backend as the published clients know it: its routes, its shapes, and nothing of ours.

In process: `TestClient(HostedBackend().app)`. For other processes: `with HostedBackend().serving() as url`. What it
does not know is answered as proxies in front of such services do: 404 and a page of HTML.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from crafter_pipeline.processes import listen, url_of
from train_app.builtin import NoObservation, builtin_models, completion

KEY = "synth-key-of-the-stand-in"
BASES = frozenset(f"Qwen/Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B", "30B-A3B"))
TRAINED = re.compile(r"(fft|ft|qft|rl):[^:]+:job_[0-9a-f]{16}")
SUCCEEDS = ("queued", "running", "succeeded")
"""States of a job, one for each time that somebody asks; the last one stays."""
FAILS = ("queued", "running", "failed")
NEVER_ENDS = ("running",)
TERMINAL = frozenset({"succeeded", "completed", "failed", "cancelled", "canceled", "error"})
NOT_FOUND = """<html>
<head><title>404 Not Found</title></head>
<body><center><h1>404 Not Found</h1></center><hr><center>nginx</center></body>
</html>
"""

RL_KEYS = {
    "services": ("task_url",),
    "compute": ("gpu_type", "gpu_count"),
    "model": ("trainer_mode", "label"),
    "rollout": ("env_name", "policy_name", "max_turns", "episodes_per_batch", "max_concurrent_rollouts"),
    "training": (
        *("num_epochs", "iterations_per_epoch", "max_turns", "batch_size", "group_size", "learning_rate"),
        *("log_interval", "weight_sync_interval"),
    ),
}
"""What the config of an RL job cannot do without."""
EVALUATION_KEYS = ("instances", "every_n_iters", "seeds")


@dataclass(frozen=True)
class Recorded:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """Names in lower case."""
    body: Any
    """The JSON value; of an upload {purpose, filename, content_type, bytes}; else the text."""
    status: int
    """How it was answered."""


@dataclass
class HostedJob:
    """A job, and how far its script has come."""

    id: str
    kind: str
    payload: dict[str, Any]
    states: tuple[str, ...]
    started: bool
    at: int = 0
    status: str = "pending"
    model_id: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)
    phases: list[dict[str, Any]] = field(default_factory=list)
    created_at: str = field(default_factory=lambda: _now())

    @property
    def base(self) -> str:
        """The base model behind it."""
        data = self.payload.get("data") or {}
        name = str(self.payload.get("model") or data.get("model") or data.get("base_model"))
        return name.split(":")[1] if ":" in name else name


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, detail: Any) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail


class HostedBackend:
    """The service, what it was asked, and what it holds.

    Args:
        key: The key it takes, as `Authorization: Bearer`.
        sft, rl: States of the jobs to come, see `SUCCEEDS`; may be changed between two jobs.
    """

    def __init__(self, key: str = KEY, *, sft: tuple[str, ...] = SUCCEEDS, rl: tuple[str, ...] = SUCCEEDS) -> None:
        self.key = key
        self.scripts = {"sft": sft, "rl": rl}
        self.requests: list[Recorded] = []
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.jobs: dict[str, HostedJob] = {}
        self.models: list[dict[str, Any]] = []
        """Newest first."""
        self.env_keys: dict[str, str] = {}
        self.reaches_task_apps = True
        """What `verify_task_app` finds."""
        self.paired = False
        """Whether somebody has said yes to the pairing in the browser."""
        self.broken: Callable[[Request], Response | None] = lambda request: None
        """May answer in place of the service, for tests of what goes wrong on the way."""
        self._by_key: dict[str, str] = {}
        self._players = builtin_models()
        self._lock = threading.Lock()
        self.app = Starlette(
            routes=[
                Route("/{path:path}", self._answer, methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]),
            ]
        )

    def asked(self, method: str = "", path: str = "") -> list[Recorded]:
        """Requests of a method whose path matches a regular expression as a whole; empty: any."""
        return [
            r
            for r in self.requests
            if (not method or r.method == method) and (not path or re.fullmatch(path, r.path) is not None)
        ]

    def add_model(self, model_id: str, job_id: str = "") -> None:
        """A model that was trained before."""
        base = model_id.split(":")[1]
        job_id = job_id or model_id.rpartition(":")[2]
        told = {"id": model_id, "base_model": base, "created_at": _now(), "job_id": job_id, "status": "ready"}
        self.models.insert(0, told)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The service on a free port of loopback, in a thread; its address without /api."""
        sock = listen("127.0.0.1", 0)
        config = uvicorn.Config(self.app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield url_of(sock)
        finally:
            server.should_exit = True
            thread.join(10.0)
            sock.close()

    # ------------------------------------------------------------------ HTTP

    async def _answer(self, request: Request) -> Response:
        body = await _body_of(request)
        answer = self.broken(request)
        if answer is None:
            try:
                answer = await run_in_threadpool(self._route, request, body)
            except Refused as e:
                answer = JSONResponse({"detail": e.detail}, e.status)
        shown = {k: v for k, v in body.items() if k != "content"} if isinstance(body, dict) else body
        self.requests.append(
            Recorded(
                request.method,
                request.url.path,
                dict(request.query_params),
                {k.lower(): v for k, v in request.headers.items()},
                shown,
                answer.status_code,
            )
        )
        return answer

    def _route(self, request: Request, body: Any) -> Response:
        path = request.url.path
        for prefix, routes in self._routes().items():
            if not path.startswith(prefix):
                continue
            for method, pattern, handler, open_ in routes:
                match = re.fullmatch(pattern, path.removeprefix(prefix))
                if match is None or method != request.method:
                    continue
                if not open_ and request.headers.get("authorization") != f"Bearer {self.key}":
                    raise Refused(401, "Invalid API key")
                with self._lock:
                    answer = handler(request, body, *match.groups())
                return answer if isinstance(answer, Response) else JSONResponse(answer)
        return HTMLResponse(NOT_FOUND, 404)

    def _routes(self) -> dict[str, list[tuple[str, str, Callable[..., Any], bool]]]:
        """{prefix: [(method, pattern, handler, open)]}."""
        jobs = r"/(?:learning|rl|orchestration)/jobs/([^/]+)"
        shared = [
            ("POST", r"(?:/learning)?/files", self._upload, False),
            ("GET", r"(?:/learning)?/files", self._list_files, False),
            ("GET", r"(?:/learning)?/files/([^/]+)", self._file, False),
            ("POST", r"/learning/jobs", self._create_sft, False),
            ("GET", r"/learning/jobs", self._list_jobs, False),
            ("POST", r"/learning/jobs/([^/]+)/start", self._start, False),
            ("POST", r"/learning/jobs/([^/]+)/cancel", self._cancel, False),
            ("POST", r"/rl/verify_task_app", self._verify, False),
            ("POST", r"/rl/jobs", self._create_rl, False),
            ("GET", r"/rl/services/([^/]+)", self._trainer, False),
            ("GET", jobs, self._job, False),
            ("GET", jobs + "/status", self._job_status, False),
            ("GET", jobs + "/config", self._job_config, False),
            ("GET", jobs + "/events", self._events, False),
            ("GET", jobs + "/metrics", self._metrics, False),
            ("GET", jobs + "/timeline", self._timeline, False),
            ("GET", r"/jobs/([^/]+)/runs", self._runs, False),
            ("GET", r"/learning/models", self._list_models, False),
            ("GET", r"/learning/models/rl", self._list_rl_models, False),
            ("GET", r"/learning/models/(.+:.+)", self._model, False),
            ("POST", r"/inference/v1/chat/completions", self._chat, False),
        ]
        only_v1 = [
            ("GET", r"/crypto/public-key", self._public_key, False),
            ("POST", r"/env-keys", self._store_env_key, False),
            ("GET", r"/env-keys/verify", self._verify_env_key, False),
            ("POST", r"/pricing/preflight", lambda *_: {"estimated_cost_usd": 0.0}, False),
            ("GET", r"/balance/autumn-normalized", lambda *_: {"balance_usd": 25.0}, False),
        ]
        only_api = [
            ("POST", r"/sdk/handshake/init", self._handshake, True),
            ("POST", r"/sdk/handshake/token", self._token, True),
        ]
        return {"/api/v1": [*shared, *only_v1], "/api": [*shared, *only_api]}

    # ------------------------------------------------------------------ files

    def _upload(self, request: Request, body: Any) -> Any:
        if not isinstance(body, dict) or "content" not in body:
            raise Refused(422, _missing("body", "file"))
        if body.get("purpose") != "fine-tune":
            raise Refused(422, _invalid("Input should be 'fine-tune'", "body", "purpose"))
        file_id = f"file_{len(self.files):016x}"
        self.contents[file_id] = body["content"]
        self.files[file_id] = {
            "id": file_id,
            "purpose": "fine-tune",
            "filename": body["filename"],
            "bytes": len(body["content"]),
            "status": "uploaded",
            "created_at": _now(),
        }
        return self.files[file_id]

    def _list_files(self, request: Request, body: Any) -> Any:
        return {"files": [*self.files.values()][::-1]}

    def _file(self, request: Request, body: Any, file_id: str) -> Any:
        if file_id not in self.files:
            raise Refused(404, "File not found")
        self.files[file_id]["status"] = "ready"
        return self.files[file_id]

    # ------------------------------------------------------------------ jobs

    def _create_sft(self, request: Request, body: Any) -> Any:
        _require(body, "model", "training_type", "training_file_id", "hyperparameters", "metadata")
        if body["training_type"] != "sft_offline":
            raise Refused(422, _invalid("Input should be 'sft_offline'", "body", "training_type"))
        if body["model"] not in BASES:
            raise Refused(400, f"Unsupported base model: {body['model']}")
        effective = _table(body["metadata"], "effective_config", "body", "metadata")
        for name in ("compute", "data", "training"):
            _table(effective, name, "body", "metadata", "effective_config")
        _compute(effective["compute"], "body", "metadata", "effective_config", "compute")
        _require(body["hyperparameters"], "n_epochs", where=("body", "hyperparameters"))
        files = [body["training_file_id"], *effective["data"].get("validation_files", [])]
        for file_id in files:
            if file_id not in self.files:
                raise Refused(400, f"Unknown file: {file_id}")
        return self._create(request, "sft", body)

    def _create_rl(self, request: Request, body: Any) -> Any:
        _require(body, "job_type", "compute", "data")
        if body["job_type"] != "rl":
            raise Refused(422, _invalid("Input should be 'rl'", "body", "job_type"))
        _compute(body["compute"], "body", "compute")
        data = _table(body, "data", "body")
        if not data.get("endpoint_base_url"):
            raise Refused(422, _missing("body", "data", "endpoint_base_url"))
        model, base = data.get("model"), data.get("base_model")
        if bool(model) == bool(base):
            raise Refused(422, _invalid("Exactly one of model, base_model", "body", "data", "model"))
        if base and base not in BASES:
            raise Refused(400, f"Unsupported base model: {base}")
        if model and model not in [m["id"] for m in self.models]:
            raise Refused(400, f"Unknown model: {model}")
        if "trainer" not in data:  # the SDK's client names a trainer in place of a config
            config = _table(data, "config", "body", "data")
            for table, names in RL_KEYS.items():
                _require(
                    _table(config, table, "body", "data", "config"), *names, where=("body", "data", "config", table)
                )
            if "evaluation" in config:
                where = ("body", "data", "config", "evaluation")
                _require(config["evaluation"], *EVALUATION_KEYS, where=where)
            if config["model"]["trainer_mode"] not in ("full", "lora"):
                where = ("body", "data", "config", "model", "trainer_mode")
                raise Refused(422, _invalid("Input should be 'full' or 'lora'", *where))
        return self._create(request, "rl", body)

    def _create(self, request: Request, kind: str, payload: dict[str, Any]) -> Any:
        key = request.headers.get("idempotency-key")
        if key is not None and key in self._by_key:
            return JSONResponse(_view(self.jobs[self._by_key[key]]), 200)
        job_id = f"job_{len(self.jobs) + 1:016x}"
        job = HostedJob(job_id, kind, payload, self.scripts[kind], started=kind == "rl")
        self.jobs[job_id] = job
        if key is not None:
            self._by_key[key] = job_id
        _tell(job, "job.created", "created")
        return JSONResponse(_view(job), 201)

    def _start(self, request: Request, body: Any, job_id: str) -> Any:
        job = self._known(job_id)
        job.started = True
        return _view(job)

    def _cancel(self, request: Request, body: Any, job_id: str) -> Any:
        job = self._known(job_id)
        if job.status not in TERMINAL:
            job.states, job.at = ("cancelled",), 0
            self._advance(job)
        return _view(job)

    def _list_jobs(self, request: Request, body: Any) -> Any:
        wanted = request.query_params
        found = [
            _view(job)
            for job in reversed(self.jobs.values())
            if wanted.get("status", job.status) == job.status and wanted.get("type", job.kind) == job.kind
        ]
        return {"jobs": found[: int(wanted.get("limit", 100))]}

    def _job(self, request: Request, body: Any, job_id: str) -> Any:
        job = self._known(job_id)
        self._advance(job)
        return _view(job)

    def _job_status(self, request: Request, body: Any, job_id: str) -> Any:
        return {"status": self._known(job_id).status}

    def _job_config(self, request: Request, body: Any, job_id: str) -> Any:
        return {"config": self._known(job_id).payload}

    def _events(self, request: Request, body: Any, job_id: str) -> Any:
        since = int(request.query_params.get("since_seq", 0))
        limit = int(request.query_params.get("limit", 200))
        return {"events": [e for e in self._known(job_id).events if e["seq"] > since][:limit]}

    def _metrics(self, request: Request, body: Any, job_id: str) -> Any:
        after = int(request.query_params.get("after_step", 0))
        limit = int(request.query_params.get("limit", 200))
        name = request.query_params.get("name")
        points = [p for p in self._known(job_id).points if p["step"] > after and name in (None, p["name"])]
        return {"points": points[:limit]}

    def _timeline(self, request: Request, body: Any, job_id: str) -> Any:
        return {"events": self._known(job_id).phases}

    def _runs(self, request: Request, body: Any, job_id: str) -> Any:
        job = self._known(job_id)
        return {"runs": [{"run_number": 1, "engine": "hosted", "status": job.status, "created_at": job.created_at}]}

    def _known(self, job_id: str) -> HostedJob:
        if job_id not in self.jobs:
            raise Refused(404, "Job not found")
        return self.jobs[job_id]

    def _advance(self, job: HostedJob) -> None:
        """Go to the job's next state, if it has been started."""
        if not job.started or job.at >= len(job.states):
            return
        job.status = job.states[job.at]
        job.at += 1
        if job.status == "running":
            name = "train.loss" if job.kind == "sft" else "rl.reward.mean"
            job.points += [_point(name, step, 1.0 / step) for step in (1, 2, 3)]
        if job.status in ("succeeded", "completed"):
            asked = job.payload.get("hyperparameters") or {}
            training = ((job.payload.get("metadata") or {}).get("effective_config") or {}).get("training") or {}
            full = "fft" if asked.get("train_kind", "fft") == "fft" and training.get("mode") != "lora" else "ft"
            prefix = "rl" if job.kind == "rl" else "qft" if training.get("use_qlora") else full
            job.model_id = f"{prefix}:{job.base}:{job.id}"
            self.add_model(job.model_id, job.id)
        words = {"succeeded": "completed", "running": "started"}.get(job.status, job.status)
        _tell(job, f"{job.kind}.job.{words}", job.status, "error" if job.status == "failed" else "info")

    def _verify(self, request: Request, body: Any) -> Any:
        _require(body, "endpoint_base_url")
        status = 200 if self.reaches_task_apps else 401
        return {
            "any_ok": self.reaches_task_apps,
            "candidates_first15": ["sk_env_standin_"],
            "attempts": [{"endpoint": body["endpoint_base_url"], "status": status}],
        }

    def _trainer(self, request: Request, body: Any, trainer_id: str) -> Any:
        return {"trainer_id": trainer_id, "training_start_url": f"https://{trainer_id}.example/start"}

    # ------------------------------------------------------------------ models

    def _list_models(self, request: Request, body: Any) -> Any:
        return {"data": self.models}

    def _list_rl_models(self, request: Request, body: Any) -> Any:
        return {"data": [m for m in self.models if m["id"].startswith("rl:")]}

    def _model(self, request: Request, body: Any, model_id: str) -> Any:
        for model in self.models:
            if model["id"] == model_id:
                return model
        raise Refused(404, "Model not found")

    def _chat(self, request: Request, body: Any) -> Any:
        """Trained models play like the expert, bases at random."""
        _require(body, "model", "messages")
        name = str(body["model"])
        if name not in BASES and name not in [m["id"] for m in self.models]:
            raise Refused(404, f"Model not found: {name}")
        environment = "math" if "math" in json.dumps(body.get("tools", "")) else "crafter"
        player = self._players[f"{environment}-{'random' if name in BASES else 'expert'}"]
        try:
            return Response(completion(name, player, body), media_type="application/json")
        except NoObservation:
            message = {"role": "assistant", "content": "noop"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            return {"object": "chat.completion", "model": name, "choices": [choice], "usage": usage}

    # ------------------------------------------------------------------ keys and pairing

    def _public_key(self, request: Request, body: Any) -> Any:
        key = base64.b64encode(bytes(range(32))).decode()
        return {"public_key": key, "alg": "libsodium.sealedbox.v1"}

    def _store_env_key(self, request: Request, body: Any) -> Any:
        _require(body, "name", "ciphertext_b64")
        self.env_keys[body["name"]] = body["ciphertext_b64"]
        return {"name": body["name"]}

    def _verify_env_key(self, request: Request, body: Any) -> Any:
        return {"present": "ENVIRONMENT_API_KEY" in self.env_keys}

    def _handshake(self, request: Request, body: Any) -> Any:
        return {
            "device_code": "device-1",
            "verification_uri": "https://hosted.example/pair",
            "expires_in": 600,
            "interval": 1,
        }

    def _token(self, request: Request, body: Any) -> Any:
        if (body or {}).get("device_code") != "device-1":
            raise Refused(404, "Unknown device code")
        if not self.paired:
            raise Refused(428, "authorization_pending")
        return {"org": {"name": "org of the stand-in"}, "keys": {"synth": self.key, "rl_env": "env-key"}}


# --------------------------------------------------------------------------- shapes


async def _body_of(request: Request) -> Any:
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        form = await request.form()
        file = form.get("file")
        told: dict[str, Any] = {"purpose": form.get("purpose")}
        if isinstance(file, UploadFile):
            content = await file.read()
            told |= {"filename": file.filename, "content_type": file.content_type, "bytes": len(content)}
            told["content"] = content
        return told
    raw = await request.body()
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return raw.decode(errors="replace")


def _view(job: HostedJob) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "status": job.status,
        "training_type": "sft_offline" if job.kind == "sft" else "rl",
        "model": job.base,
        "created_at": job.created_at,
        "fine_tuned_model": job.model_id,
        "error": "CUDA out of memory" if job.status == "failed" else None,
    }


def _tell(job: HostedJob, kind: str, phase: str, level: str = "info") -> None:
    event = {
        "seq": len(job.events) + 1,
        "type": kind,
        "level": level,
        "message": f"{job.id} is {phase}",
        "data": {},
        "created_at": _now(),
    }
    job.events.append(event)
    job.phases.append({"phase": phase, "created_at": event["created_at"]})


def _point(name: str, step: int, value: float) -> dict[str, Any]:
    return {"name": name, "step": step, "value": value, "phase": "train", "created_at": _now()}


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _missing(*where: str) -> list[dict[str, Any]]:
    return [{"type": "missing", "loc": list(where), "msg": "Field required", "input": {}}]


def _invalid(why: str, *where: str) -> list[dict[str, Any]]:
    return [{"type": "value_error", "loc": list(where), "msg": why, "input": {}}]


def _require(table: Any, *names: str, where: tuple[str, ...] = ("body",)) -> None:
    """422 about the first of the names that is missing or null."""
    if not isinstance(table, Mapping):
        raise Refused(422, _invalid("Input should be a valid dictionary", *where))
    for name in names:
        if table.get(name) is None:
            raise Refused(422, _missing(*where, name))


def _table(parent: Any, name: str, *where: str) -> dict[str, Any]:
    _require(parent, name, where=where)
    if not isinstance(parent[name], dict):
        raise Refused(422, _invalid("Input should be a valid dictionary", *where, name))
    found: dict[str, Any] = parent[name]
    return found


def _compute(table: Any, *where: str) -> None:
    """422 unless a kind of GPU and their number are named."""
    _require(table, "gpu_type", "gpu_count", where=where)
    count = table["gpu_count"]
    if not isinstance(count, int) or count < 1:
        raise Refused(422, _invalid("Input should be greater than or equal to 1", *where, "gpu_count"))
