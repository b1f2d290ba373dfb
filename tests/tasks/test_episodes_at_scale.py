"""Episodes of real task apps: on Dask's worker processes, and over several task apps of which some end."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from crafter_pipeline import connections
from crafter_pipeline.config import CollectConfig, PipelineConfig, SeedRange
from crafter_pipeline.errors import ConfigError
from crafter_pipeline.processes import Service
from crafter_pipeline.progress import report_to
from crafter_pipeline.runs import Run
from crafter_pipeline.services import ServiceGone, services
from crafter_pipeline.traces.reader import read_rollouts
from flows.collect_rollouts import collect_rollouts
from tasks.runners import dask

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]
SEEDS = SeedRange(start=0, count=24)


def run_of(tmp_path: Path, **config) -> Run:
    return Run.find(tmp_path / "runs", PipelineConfig.model_validate({"name": "scale", **config}))


def stored(folder: Path) -> Counter[int]:
    """Seed -> how many rollouts of it lie in the databases of a folder."""
    return Counter(rollout.seed for db in folder.glob("*.db") for rollout in read_rollouts(db))


@pytest.fixture
def two_processes(monkeypatch):
    """Dask starts two, on any machine."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def test_worker_processes_of_dask_play_with_the_keys_of_the_run(tmp_path, two_processes):
    """The keys of the run's own task apps are known to this process alone; its workers have to be told."""
    run = run_of(tmp_path, task_app={"replicas": 2})
    config = CollectConfig(seeds=SEEDS, max_env_steps=5, concurrency=4, task_runner="dask")
    before = set(psutil.Process().children())
    with run.locked(), services(run) as at:
        assert at.imports is None and len(connections.task_app_addresses(at.task_app_url)) == 2
        played = collect_rollouts(config, at.task_app_url, at.inference_url)
        assert (played.episodes, played.failed) == (24, {})
    assert stored(run.traces) == dict.fromkeys(range(24), 1)
    assert len(list(run.traces.glob("*.db"))) == 2, "each task app writes a database of its own"
    assert not {p for p in set(psutil.Process().children()) - before if "distributed" in " ".join(p.cmdline())}


def test_workers_of_another_scheduler_play_and_one_process_stores_their_traces(tmp_path, monkeypatch):
    """A task app elsewhere answers with traces; the workers have its key from their own environment."""
    from distributed import LocalCluster

    keys = dict.fromkeys(("ENVIRONMENT_API_KEY", "SYNTH_API_KEY"), "shared-by-hand")
    for name, key in keys.items():
        monkeypatch.setenv(name, key)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, env=keys) as cluster,
        Service("far", "task_app", ["grpo-crafter", "--trace", str(tmp_path / "far")], log=tmp_path / "log") as far,
    ):
        run = run_of(tmp_path, task_app={"runtime": "url", "url": far.url})
        address = {"task_runner": "dask", "dask_address": cluster.scheduler_address}
        config = CollectConfig(seeds=SEEDS, max_env_steps=5, concurrency=2, **address)
        with run.locked(), services(run) as at:
            assert at.imports == run.traces
            played = collect_rollouts(config, at.task_app_url, at.inference_url, at.imports)
            assert (played.episodes, played.failed) == (24, {})
    assert stored(run.traces) == dict.fromkeys(range(24), 1)


def test_an_address_without_a_scheduler_is_said(tmp_path):
    with (
        pytest.raises(ConfigError, match="no Dask scheduler answers at tcp://127.0.0.1:9"),
        dask(1, "tcp://127.0.0.1:9"),
    ):
        pass


class Killer:
    """Ends a process as soon as so many seeds are played."""

    def __init__(self, pid: int, at: int) -> None:
        self.pid, self.at, self.done = pid, at, 0
        self.notes: list[str] = []

    def advance(self, count: int = 1) -> None:
        self.done += count
        if self.pid and self.done >= self.at:
            os.kill(self.pid, signal.SIGKILL)
            self.pid = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def expect(self, total: int, unit: str) -> None: ...

    def stage(self, *_: object) -> None: ...

    def metrics(self, *_: object) -> None: ...


def task_app_pids() -> list[int]:
    """The task apps that are our children, in the order in which they were started."""
    children = [p for p in psutil.Process().children() if "task_app" in p.cmdline()]
    return [p.pid for p in sorted(children, key=lambda p: p.create_time())]


def test_of_two_task_apps_the_other_plays_on_and_the_last_one_ends_the_stage(tmp_path):
    run = run_of(tmp_path, task_app={"replicas": 2})
    config = CollectConfig(seeds=SeedRange(start=0, count=40), max_env_steps=20, concurrency=4)
    with run.locked(), services(run) as at:
        first, second = task_app_pids()
        killer = Killer(first, at=6)
        with report_to(killer):
            played = collect_rollouts(config, at.task_app_url, at.inference_url)
        assert (played.episodes, played.failed, killer.pid) == (40, {}, 0)
        assert any("task app ended in mid-run" in note and "others play its seeds" in note for note in killer.notes)
        assert set(stored(run.traces)) == set(range(40))

        more = config.model_copy(update={"seeds": SeedRange(start=100, count=40)})
        with report_to(Killer(second, at=6)), pytest.raises(ServiceGone, match="task app 2 ended in mid-run"):
            collect_rollouts(more, at.task_app_url, at.inference_url)
    assert not task_app_pids()
