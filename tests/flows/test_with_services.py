"""Collect and filter through the real services, as children of this process."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from crafter_pipeline import connections
from crafter_pipeline.config import CollectConfig, FilterConfig, PipelineConfig, SeedRange
from crafter_pipeline.errors import ServiceError
from crafter_pipeline.processes import Service
from crafter_pipeline.runs import Run
from crafter_pipeline.services import ServiceGone, services
from flows.collect_rollouts import collect_rollouts
from flows.filter_dataset import filter_dataset

pytestmark = pytest.mark.usefixtures("prefect_server")
COLLECT = CollectConfig(seeds=SeedRange(start=0, count=4), max_env_steps=12)


def test_collect_twice_plays_once_and_keys_stay_secret(tmp_path, monkeypatch):
    minted = []
    monkeypatch.setattr(
        secrets, "token_urlsafe", lambda n=0: minted.append(f"minted-secret-{len(minted)}") or minted[-1]
    )
    run = Run.find(tmp_path, PipelineConfig(name="real"))
    with run.locked(), services(run) as at:
        assert httpx.get(f"{at.task_app_url}/health").status_code in (400, 401), "the child asks for a key"
        where = {"task_app_url": at.task_app_url, "inference_url": at.inference_url}
        first, again = collect_rollouts(COLLECT, **where), collect_rollouts(COLLECT, **where)
        assert first == again and first.episodes == 4 and first.env_steps > 0
        manifest = filter_dataset(FilterConfig(models=("crafter-expert",)), run.traces, run.dataset)
        assert manifest.rollouts_read == 4, "the second time the ledger answered"
        by_chat = FilterConfig.model_validate({"export": {"label": "crafter-random", "target": "label"}})
        labelled = filter_dataset(by_chat, run.traces, run.folder / "labelled.jsonl", at.inference_url)
        assert labelled.labels == {"crafter-random": manifest.rows} == {"crafter-random": labelled.rows}
        port = at.task_app_url.rsplit(":", 1)[1]
    assert len(minted) == 2
    for path in run.folder.rglob("*"):
        if path.is_file():
            assert b"minted-secret" not in path.read_bytes(), path
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{at.task_app_url}/livez")
    with run.locked(), services(run) as at:
        assert at.task_app_url.endswith(f":{port}"), "a resumed RL job knows the task app by its port"


def test_a_dead_task_app_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("crafter_pipeline.clients.http.FIRST_WAIT_SECONDS", 0.01)
    with pytest.raises(ServiceError, match="crafter-pipeline serve"):
        collect_rollouts(COLLECT, "http://127.0.0.1:9", "http://127.0.0.1:9/v1")


@pytest.mark.parametrize("victim, log", [("task_app", "task_app.log"), ("train_app", "backend.log")])
def test_a_service_that_dies_ends_the_stage_at_once(tmp_path, monkeypatch, victim, log):
    many = CollectConfig(seeds=SeedRange(start=0, count=400), max_env_steps=300, concurrency=4)
    run, children = Run.find(tmp_path, PipelineConfig(name="fuse")), {}
    start = Service.start
    monkeypatch.setattr(Service, "start", lambda self: (start(self), children.update({self.module: self}))[0])
    with run.locked(), services(run) as at:
        killer = threading.Timer(2.0, lambda: os.kill(children[victim].process.pid, signal.SIGKILL))
        killer.start()
        started = time.monotonic()
        with pytest.raises(ServiceGone, match="ended in mid-run") as e:
            collect_rollouts(many, at.task_app_url, at.inference_url)
        assert time.monotonic() - started < 45, "400 seeds, each with its own retries, would take minutes"
    assert str(run.logs / log) in str(e.value) and len(str(e.value).splitlines()) == 1


def test_a_service_that_cannot_start_says_so(tmp_path):
    file = tmp_path / "file"
    file.touch()
    config = PipelineConfig.model_validate({"task_app": {"trace_dir": str(file / "traces")}})
    run = Run.find(tmp_path, config)
    with run.locked(), pytest.raises(ServiceError, match="task app") as e, services(run):
        pass
    assert str(Path("logs") / "task_app.log") in str(e.value)
    assert connections.project_root().name
