"""Stand-ins for the clients of task app and training backend, with a count of what they were asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from crafter_pipeline import connections, services
from crafter_pipeline.clients.backend import Alias, AliasMove, Job, JobEvent, JobMetric
from crafter_pipeline.clients.task_app import NoLiveRoutes
from crafter_pipeline.contracts import RolloutMetrics, RolloutRequest, RolloutResponse
from crafter_pipeline.errors import BackendError, TaskAppError
from crafter_pipeline.promotion import Evidence

STRENGTH = {"crafter-random": 0, "crafter-expert": 4}
UNLOCKS = ("collect_wood", "place_table", "eat_cow", "collect_sapling", "wake_up")


class Flaky:
    """Counts calls by name; `fail[name] = n` lets the next n calls of that name fail."""

    error: type[Exception] = TaskAppError

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.fail: Counter[str] = Counter()

    def _call(self, name: str) -> None:
        self.calls[name] += 1
        if self.fail[name] > 0:
            self.fail[name] -= 1
            raise self.error(f"{name} failed for the test")


class FakeTaskApp(Flaky):
    """Answers each rollout at once; a seed in `broken` always fails."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[RolloutRequest] = []
        self.broken: set[int] = set()

    def health(self) -> dict[str, Any]:
        self._call("health")
        return {"healthy": True}

    def create(self, environment: str, seed: int, config: Any) -> Any:
        raise NoLiveRoutes("the stand-in plays whole rollouts only")

    def rollout(self, request: RolloutRequest) -> RolloutResponse:
        self._call("rollout")
        self.requests.append(request)
        seed = request.env.seed or 0
        if seed in self.broken:
            raise TaskAppError(f"seed {seed} is broken for the test")
        n = STRENGTH.get(request.policy.config["model"], 2) + (seed % 2)
        details = {"achievements": list(UNLOCKS[:n]), "env_steps": 10, "stop_reason": "env_limit"}
        metrics = RolloutMetrics(episode_returns=[float(n)], mean_return=float(n), num_steps=10, details=details)
        return RolloutResponse(run_id=request.run_id, trajectories=[], metrics=metrics)


class FakeBackend(Flaky):
    """Every job succeeds at once."""

    error = BackendError

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []
        """What each job was created of."""
        self.champions: list[str] = []
        """The last one is."""
        self.serves: str | None = None
        """Who answers as champion; None: the champion does."""

    def upload(self, path: Path) -> str:
        self._call("upload")
        return f"file-{self.calls['upload']}"

    def create_sft(self, config: Any, file_id: str, *, idempotency_key: str, **rest: Any) -> str:
        self._call("create_sft")
        self.asked.append({"config": config, "file_id": file_id, **rest})
        return f"job_{idempotency_key}"

    def create_rl(self, config: Any, *, idempotency_key: str, **rest: Any) -> str:
        self._call("create_rl")
        self.asked.append({"config": config, **rest})
        return f"job_{idempotency_key}"

    def plan(self, payload: Any) -> dict[str, Any]:
        return {
            "device": "cpu",
            "machine": "a machine of the test",
            "steps": 2,
            "seconds_range": [10.0, 40.0],
            "memory": {"total": 1 << 30},
            "memory_bytes": 8 << 30,
            "fits": True,
        }

    def cancel(self, job_id: str) -> None:
        self._call("cancel")

    def start(self, job_id: str) -> None:
        self._call("start")

    def job(self, job_id: str) -> Job:
        return Job(job_id, "running", None, None)

    def wait(
        self,
        job_id: str,
        on_event: Callable[[JobEvent], None],
        on_metrics: Callable[[int, dict[str, float]], None],
        poll_seconds: float,
        timeout_seconds: float | None = None,
    ) -> Job:
        self._call("wait")
        on_event(JobEvent(1, "sft.training.started", "info", "started, 2 steps", {"steps": 2, "step": 0}))
        for point in self.metrics(job_id):
            on_metrics(point.step, {point.name: point.value})
        on_event(JobEvent(2, "job.note", "warning", f"a warning of {job_id}", {}))
        return Job(job_id, "succeeded", f"fft:crafter-tiny:{job_id}", None)

    def metrics(self, job_id: str, after_step: int | None = None, limit: int = 0) -> list[JobMetric]:
        return [m for m in (JobMetric("train.loss", s, 1 / s) for s in (1, 2)) if m.step > (after_step or 0)]

    def model(self, model_id: str) -> dict[str, Any]:
        for model in self.models():
            if model_id in (model["id"], f"latest:{model['kind']}"):
                return model
        unknown = BackendError(f"There is no trained model {model_id!r}.")
        unknown.status = 404
        raise unknown

    def full_id(self, name: str) -> str:
        if name == "champion" and self.champion is None:
            unknown = BackendError("There is no champion yet.")
            unknown.status = 404
            raise unknown
        if name == "champion":
            return str(self.champion)
        return str(self.model(name)["id"]) if name.startswith("latest:") else name

    def slots(self) -> int:
        return 1

    def verify_task_app(self, url: str) -> dict[str, Any]:
        self._call("verify_task_app")
        return {"any_ok": True}

    def models(self, kind: str | None = None) -> list[dict[str, Any]]:
        self._call("models")
        return [{"id": "rl:crafter-tiny:job_2", "kind": "rl"}, {"id": "fft:crafter-tiny:job_1", "kind": "sft"}]

    def alias(self, name: str) -> Alias:
        self._call("alias")
        return self._alias()

    def move_alias(self, name: str, model: str, *, instead_of: str | None, evidence: Evidence, by: str) -> Alias:
        self._call("move_alias")
        assert instead_of == self.champion and evidence.candidate == model
        self.champions.append(model)
        return self._alias()

    def rollback_alias(self, name: str, *, move: int | None = None, by: str, reason: str) -> Alias:
        self._call("rollback_alias")
        assert move in (None, len(self.champions))
        self.champions.pop()
        return self._alias()

    def serving(self, model: str) -> str:
        self._call("serving")
        return self.serves or str(self.champion)

    @property
    def champion(self) -> str | None:
        return self.champions[-1] if self.champions else None

    def _alias(self) -> Alias:
        moves = [AliasMove(n, "promoted", m, "", "", "", None) for n, m in enumerate(self.champions, start=1)]
        return Alias("champion", self.champion, None, None, tuple(moves[::-1]))


@contextmanager
def standins() -> Iterator[tuple[FakeTaskApp, FakeBackend]]:
    """Put both in place of the real clients, whatever the address."""
    task_app, backend = FakeTaskApp(), FakeBackend()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections, "task_app", lambda url: task_app)
        patch.setattr(connections, "backend", lambda url: backend)
        patch.setattr(services, "refuses", lambda url: False)
        yield task_app, backend
